{{/* The one container of all modes, its volumes, and what its pod needs. */}}

{{/* A variable from a key of a Secret. Takes a dict: name, secret, key. */}}
{{- define "cmail-proxy.secretEnv" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}
{{- end -}}

{{/* User names come by variables, because settings have no files for them; everything else is in files. */}}
{{- define "cmail-proxy.env" -}}
{{- $own := include "cmail-proxy.fullname" . -}}
{{- $places := dict "relay" "CMAIL_PROXY_RELAY__USERNAME" "smarthost" "CMAIL_PROXY_DELIVER__SMARTHOST__USERNAME" -}}
{{- range $name := list "relay" "smarthost" -}}
{{- $login := index $.Values.credentials $name -}}
{{- if $login.existingSecret }}
{{ include "cmail-proxy.secretEnv" (dict "name" (index $places $name) "secret" $login.existingSecret "key" $login.usernameKey) }}
{{- else if $login.username }}
{{ include "cmail-proxy.secretEnv" (dict "name" (index $places $name) "secret" $own "key" (printf "%s-username" $name)) }}
{{- end -}}
{{- end -}}
{{- range $i, $login := .Values.credentials.logins -}}
{{- $name := printf "CMAIL_PROXY_LOGINS__%d__USERNAME" $i -}}
{{- if and $login.existingSecret $login.usernameKey }}
{{ include "cmail-proxy.secretEnv" (dict "name" $name "secret" $login.existingSecret "key" $login.usernameKey) }}
{{- else if $login.username }}
{{ include "cmail-proxy.secretEnv" (dict "name" $name "secret" $own "key" (printf "login-%d-username" $i)) }}
{{- end -}}
{{- end -}}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end -}}
{{- end -}}

{{- define "cmail-proxy.container" -}}
{{- $settings := include "cmail-proxy.settings" . | fromYaml -}}
name: cmail-proxy
image: {{ include "cmail-proxy.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [serve, --config, /etc/cmail-proxy/settings/settings.yaml]
{{- with include "cmail-proxy.env" . | trim }}
env:
  {{- . | nindent 2 }}
{{- end }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  {{- range $settings.listeners }}
  - {name: smtp-{{ int (.port | default 2525) }}, containerPort: {{ int (.port | default 2525) }}, protocol: TCP}
  {{- end }}
  - {name: probes, containerPort: {{ int $settings.http.probes.port }}, protocol: TCP}
  {{- if eq .Values.mode "core" }}
  - {name: public, containerPort: {{ int $settings.http.public.port }}, protocol: TCP}
  {{- end }}
startupProbe:
  httpGet: {path: /startupz, port: probes}
  {{- toYaml .Values.startupProbe | nindent 2 }}
readinessProbe:
  httpGet: {path: /readyz, port: probes}
  {{- toYaml .Values.readinessProbe | nindent 2 }}
livenessProbe:
  httpGet: {path: /livez, port: probes}
  {{- toYaml .Values.livenessProbe | nindent 2 }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
volumeMounts:
  - {name: cmail-proxy-settings, mountPath: /etc/cmail-proxy/settings, readOnly: true}
  {{- if or .Values.extraMappings .Values.existingMappings }}
  - {name: cmail-proxy-rules, mountPath: /etc/cmail-proxy/rules, readOnly: true}
  {{- end }}
  {{- if include "cmail-proxy.secretSources" . | trim }}
  - {name: cmail-proxy-secrets, mountPath: /etc/cmail-proxy/secrets, readOnly: true}
  {{- end }}
  {{- if .Values.certificate.existingSecret }}
  - {name: cmail-proxy-certificate, mountPath: /etc/cmail-proxy/certificate, readOnly: true}
  {{- end }}
  - {name: cmail-proxy-data, mountPath: /var/lib/cmail-proxy}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* One file of the projected volume. Takes a dict: secret, key, path. */}}
{{- define "cmail-proxy.secretSource" -}}
- secret:
    name: {{ .secret }}
    items: [{key: {{ .key }}, path: {{ .path }}}]
{{- end -}}

{{- define "cmail-proxy.secretSources" -}}
{{- $own := include "cmail-proxy.fullname" . -}}
{{- range $name := list "relay" "smarthost" -}}
{{- $login := index $.Values.credentials $name -}}
{{- $path := printf "%s-password" $name -}}
{{- if $login.existingSecret }}
{{ include "cmail-proxy.secretSource" (dict "secret" $login.existingSecret "key" $login.passwordKey "path" $path) }}
{{- else if $login.password }}
{{ include "cmail-proxy.secretSource" (dict "secret" $own "key" $path "path" $path) }}
{{- end -}}
{{- end -}}
{{- if include "cmail-proxy.generatesToken" . }}
{{ include "cmail-proxy.secretSource" (dict "secret" (printf "%s-token" $own) "key" "token" "path" "token") }}
{{- end -}}
{{- range $i, $token := .Values.credentials.tokens -}}
{{- $path := printf "token-%d" $i -}}
{{- if $token.existingSecret }}
{{ include "cmail-proxy.secretSource" (dict "secret" $token.existingSecret "key" ($token.key | default "token") "path" $path) }}
{{- else }}
{{ include "cmail-proxy.secretSource" (dict "secret" $own "key" $path "path" $path) }}
{{- end -}}
{{- end -}}
{{- range $i, $login := .Values.credentials.logins -}}
{{- $path := printf "login-%d" $i -}}
{{- if $login.existingSecret }}
{{ include "cmail-proxy.secretSource" (dict "secret" $login.existingSecret "key" ($login.passwordKey | default "password") "path" $path) }}
{{- else }}
{{ include "cmail-proxy.secretSource" (dict "secret" $own "key" $path "path" $path) }}
{{- end -}}
{{- end -}}
{{- with .Values.credentials.tracking -}}
{{- if .existingSecret }}
{{ include "cmail-proxy.secretSource" (dict "secret" .existingSecret "key" .key "path" "tracking-secret") }}
{{- end -}}
{{- end -}}
{{- range $i, $key := .Values.credentials.dkim }}
{{ include "cmail-proxy.secretSource" (dict "secret" $key.existingSecret "key" ($key.key | default "private.pem") "path" (printf "dkim-%d" $i)) }}
{{- end -}}
{{- end -}}

{{/* All volumes but that of the queue, which mode core has from its claim. */}}
{{- define "cmail-proxy.volumes" -}}
{{- $own := include "cmail-proxy.fullname" . -}}
- name: cmail-proxy-settings
  configMap: {name: {{ $own }}-settings}
{{- if or .Values.extraMappings .Values.existingMappings }}
- name: cmail-proxy-rules
  {{- if and .Values.extraMappings .Values.existingMappings }}
  projected:
    sources:
      - configMap: {name: {{ .Values.existingMappings }}}
      - configMap: {name: {{ $own }}-rules}
  {{- else }}
  configMap: {name: {{ .Values.existingMappings | default (printf "%s-rules" $own) }}}
  {{- end }}
{{- end }}
{{- with include "cmail-proxy.secretSources" . | trim }}
- name: cmail-proxy-secrets
  projected:
    # Readable for the proxy also where it is a sidecar and fsGroup is the app's; nobody else sees the volume.
    defaultMode: 0444
    sources:
      {{- . | nindent 6 }}
{{- end }}
{{- with .Values.certificate }}
{{- if .existingSecret }}
- name: cmail-proxy-certificate
  secret:
    secretName: {{ .existingSecret }}
    defaultMode: 0444
    items: [{key: {{ .certificateKey }}, path: tls.crt}, {key: {{ .privateKeyKey }}, path: tls.key}]
{{- end }}
{{- end }}
{{- if or (ne .Values.mode "core") (not .Values.persistence.enabled) }}
- name: cmail-proxy-data
  emptyDir: {}
{{- else if .Values.persistence.existingClaim }}
- name: cmail-proxy-data
  persistentVolumeClaim: {claimName: {{ .Values.persistence.existingClaim }}}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The sysctl for ports below 1024; nothing where there are none. It is in the restricted pod security standard. */}}
{{- define "cmail-proxy.sysctls" -}}
{{- $lowest := 1024 -}}
{{- range (include "cmail-proxy.settings" . | fromYaml).listeners -}}
{{- $lowest = min $lowest (int (.port | default 2525)) -}}
{{- end -}}
{{- if lt (int $lowest) 1024 -}}
- {name: net.ipv4.ip_unprivileged_port_start, value: {{ $lowest | quote }}}
{{- end -}}
{{- end -}}

{{/* The pod of modes gateway and core. */}}
{{- define "cmail-proxy.pod" -}}
{{- $shutdown := (include "cmail-proxy.settings" . | fromYaml).shutdown -}}
metadata:
  labels:
    {{- include "cmail-proxy.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    {{- include "cmail-proxy.checksum" . | nindent 4 }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "cmail-proxy.serviceAccountName" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds | default (add ($shutdown.delay_seconds | default 0) ($shutdown.drain_seconds | default 30) 15) | int }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
    {{- with include "cmail-proxy.sysctls" . }}
    sysctls:
      {{- . | nindent 6 }}
    {{- end }}
  containers:
    - {{- include "cmail-proxy.container" . | nindent 6 }}
    {{- with .Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "cmail-proxy.volumes" . | nindent 4 }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
