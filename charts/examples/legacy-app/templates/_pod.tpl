{{/* The app's pod, for its Deployment and its Job. The four includes are all that the sidecar takes. Takes a dict: root, script. */}}
{{- define "legacy-app.pod" -}}
{{- $smtp := .root.Values.smtp -}}
{{- $proxied := index .root.Values "cmail-proxy" "enabled" -}}
metadata:
  labels:
    app.kubernetes.io/name: legacy-app
    app.kubernetes.io/instance: {{ .root.Release.Name }}
    {{- if $proxied }}
    {{- include "cmail-proxy.podLabels" .root | nindent 4 }}
  annotations:
    {{- include "cmail-proxy.podAnnotations" .root | nindent 4 }}
    {{- end }}
spec:
  automountServiceAccountToken: false
  # The proxy needs its config.shutdown.drain_seconds after the app has ended.
  terminationGracePeriodSeconds: 60
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    seccompProfile: {type: RuntimeDefault}
    {{- if $proxied }}
    {{- with include "cmail-proxy.podSysctls" .root }}
    sysctls:
      {{- . | nindent 6 }}
    {{- end }}
    {{- end }}
  {{- if $proxied }}
  {{- with include "cmail-proxy.hostAliases" .root }}
  hostAliases:
    {{- . | nindent 4 }}
  {{- end }}
  initContainers:
    {{- include "cmail-proxy.sidecar" .root | nindent 4 }}
  {{- end }}
  containers:
    - name: app
      image: {{ .root.Values.image }}
      command: [python, -u, /app/{{ .script }}]
      env:
        - {name: SMTP_HOST, value: {{ $smtp.host | quote }}}
        - {name: SMTP_PORT, value: {{ $smtp.port | quote }}}
        - {name: MAIL_FROM, value: {{ $smtp.from | quote }}}
        - {name: MAIL_TO, value: {{ $smtp.to | quote }}}
        - {name: EVERY_SECONDS, value: {{ .root.Values.everySeconds | quote }}}
        - name: SMTP_USERNAME
          valueFrom: {secretKeyRef: {name: legacy-app-smtp, key: username}}
        - name: SMTP_PASSWORD
          valueFrom: {secretKeyRef: {name: legacy-app-smtp, key: password}}
      resources:
        requests: {cpu: 10m, memory: 32Mi}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: app, mountPath: /app, readOnly: true}
  volumes:
    - name: app
      configMap: {name: legacy-app}
    {{- if $proxied }}
    {{- include "cmail-proxy.sidecarVolumes" .root | nindent 4 }}
    {{- end }}
{{- end -}}
