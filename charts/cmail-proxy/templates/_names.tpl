{{/* Names, labels and the image. Every template here takes the scope of this chart. */}}

{{- define "cmail-proxy.name" -}}
{{- default "cmail-proxy" .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Short enough for the longest ending that objects add to it ("-dashboard"). */}}
{{- define "cmail-proxy.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "cmail-proxy.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "cmail-proxy.selectorLabels" -}}
app.kubernetes.io/name: {{ include "cmail-proxy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The pod of `helm test` must be in no selector: Services would send mail to it, and the NetworkPolicy would hold it. */}}
{{- define "cmail-proxy.testLabels" -}}
app.kubernetes.io/name: {{ printf "%s-test" (include "cmail-proxy.name" . | trunc 58 | trimSuffix "-") }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "cmail-proxy.labels" -}}
helm.sh/chart: {{ printf "cmail-proxy-%s" .Chart.Version | replace "+" "_" }}
{{ include "cmail-proxy.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: {{ .Values.mode }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The metadata of an object. Takes a dict: root, suffix (of the name), and labels and annotations of its own. */}}
{{- define "cmail-proxy.metadata" -}}
{{- $own := .labels | default dict -}}
name: {{ include "cmail-proxy.fullname" .root }}{{ .suffix }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "cmail-proxy.labels" .root | nindent 2 }}
  {{- with $own }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "cmail-proxy.image" -}}
{{- $image := .Values.image -}}
{{- $name := $image.repository -}}
{{- if $image.registry -}}{{- $name = printf "%s/%s" $image.registry $name -}}{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name ($image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "cmail-proxy.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "cmail-proxy.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* By what pods that have the sidecar are found; its template "cmail-proxy.podLabels" puts it on them. */}}
{{- define "cmail-proxy.sidecarLabel" -}}
cmail-proxy/sidecar: {{ include "cmail-proxy.fullname" . }}
{{- end -}}
