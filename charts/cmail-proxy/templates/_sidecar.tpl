{{/*
For the app's chart, in mode sidecar. Each takes the app's own scope; with an alias, `(index .Subcharts "ALIAS")`.

    initContainers:
      {{- include "cmail-proxy.sidecar" . | nindent 8 }}
    volumes:
      {{- include "cmail-proxy.sidecarVolumes" . | nindent 8 }}

and where wanted `cmail-proxy.podLabels`, `cmail-proxy.podAnnotations`, `cmail-proxy.hostAliases` and `cmail-proxy.podSysctls`.
*/}}

{{/* Call a template with this chart's scope, wherever it was called from. Takes a list: scope, name of the template, and
the name by which it was asked for. */}}
{{- define "cmail-proxy.within" -}}
{{- $scope := index . 0 -}}
{{- $template := index . 1 -}}
{{- $asked := index . 2 -}}
{{- with $scope.Subcharts -}}
{{- with index . "cmail-proxy" -}}{{- $scope = . -}}{{- end -}}
{{- end -}}
{{- if not (hasKey $scope.Values "listenAddress") -}}
{{- fail (printf "\n\n%s: this scope has no dependency cmail-proxy. Is it in Chart.yaml, and enabled? With an alias, hand in (index .Subcharts \"ALIAS\").\n" $asked) -}}
{{- end -}}
{{- if ne $scope.Values.mode "sidecar" -}}
{{- fail (printf "\n\n%s: mode is %s; for a sidecar, set cmail-proxy.mode: sidecar\n" $asked $scope.Values.mode) -}}
{{- end -}}
{{- include $template $scope -}}
{{- end -}}

{{/* The container, as an item of `initContainers`; it should be the first one, so that the others can send, too. */}}
{{- define "cmail-proxy.sidecar" -}}
- {{- include "cmail-proxy.within" (list . "cmail-proxy.sidecarContainer" "cmail-proxy.sidecar") | nindent 2 }}
{{- end -}}

{{- define "cmail-proxy.sidecarContainer" -}}
{{- include "cmail-proxy.validate" . -}}
{{ include "cmail-proxy.container" . }}
# Starts before the app, goes on beside it, ends after it, and holds up no Job.
restartPolicy: Always
{{- end -}}

{{/* Items of `volumes`. */}}
{{- define "cmail-proxy.sidecarVolumes" -}}
{{- include "cmail-proxy.within" (list . "cmail-proxy.volumes" "cmail-proxy.sidecarVolumes") -}}
{{- end -}}

{{/* Labels of the pod, by which the PodMonitor finds it. */}}
{{- define "cmail-proxy.podLabels" -}}
{{- include "cmail-proxy.within" (list . "cmail-proxy.sidecarLabel" "cmail-proxy.podLabels") -}}
{{- end -}}

{{/* Annotations of the pod, so that it restarts when the proxy's settings change. */}}
{{- define "cmail-proxy.podAnnotations" -}}
{{- include "cmail-proxy.within" (list . "cmail-proxy.checksum" "cmail-proxy.podAnnotations") -}}
{{- end -}}

{{/* Items of `hostAliases`; nothing where they are off. */}}
{{- define "cmail-proxy.hostAliases" -}}
{{- include "cmail-proxy.within" (list . "cmail-proxy.sidecarAliases" "cmail-proxy.hostAliases") -}}
{{- end -}}

{{- define "cmail-proxy.sidecarAliases" -}}
{{- if .Values.hostAliases.enabled -}}
- ip: 127.0.0.1
  hostnames:
    {{- include "cmail-proxy.aliases" . | nindent 4 }}
{{- end -}}
{{- end -}}

{{/* Items of `securityContext.sysctls` of the pod; nothing where no listener has a port below 1024. */}}
{{- define "cmail-proxy.podSysctls" -}}
{{- include "cmail-proxy.within" (list . "cmail-proxy.sysctls" "cmail-proxy.podSysctls") -}}
{{- end -}}
