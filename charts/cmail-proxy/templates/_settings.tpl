{{/* The settings file: what the mode decides, then `config`, then where the secrets are. */}}

{{- define "cmail-proxy.defaults" -}}
{{- $v := .Values -}}
{{- $tls := $v.config.tls | default dict -}}
{{- $certificate := or $v.certificate.existingSecret $tls.certificate_file $tls.self_signed -}}
data_dir: /var/lib/cmail-proxy
http:
  probes: {address: {{ $v.listenAddress | quote }}, port: 9025}
{{- if eq $v.mode "core" }}
  public: {address: {{ $v.listenAddress | quote }}, port: 8080}
{{- end }}
{{- if eq $v.mode "sidecar" }}
listeners:
  - {address: 127.0.0.1, port: 2525, tls: {{ ternary "starttls" "none" (not (not $certificate)) }}}
shutdown: {delay_seconds: 0, drain_seconds: 20}
{{- else }}
listeners:
  - {address: {{ $v.listenAddress | quote }}, port: 2525, tls: starttls}
  - {address: {{ $v.listenAddress | quote }}, port: 2465, tls: auto}
shutdown: {delay_seconds: 5, drain_seconds: 30}
{{- if not $certificate }}
tls: {self_signed: true}
{{- end }}
{{- end }}
{{- if $v.certificate.existingSecret }}
tls:
  certificate_file: /etc/cmail-proxy/certificate/tls.crt
  key_file: /etc/cmail-proxy/certificate/tls.key
{{- end }}
route: {{ ternary "deliver" "relay" (eq $v.mode "core") }}
{{- if or $v.extraMappings $v.existingMappings }}
rules:
  directories: [/etc/cmail-proxy/rules]
  {{- with $v.extraMappings }}
  providers: {{ concat (list "mailgun" "mailjet" "mandrill" "postmark" "sendgrid") (keys . | sortAlpha) | uniq | toJson }}
  {{- end }}
{{- end }}
{{- if or $v.credentials.relay.existingSecret $v.credentials.relay.password }}
relay: {password_file: /etc/cmail-proxy/secrets/relay-password}
{{- end }}
{{- if or $v.credentials.smarthost.existingSecret $v.credentials.smarthost.password }}
deliver: {smarthost: {password_file: /etc/cmail-proxy/secrets/smarthost-password}}
{{- end }}
{{- if $v.credentials.tracking.existingSecret }}
tracking: {secret_file: /etc/cmail-proxy/secrets/tracking-secret}
{{- end }}
{{- end -}}

{{/* The ports of the Service: with the listeners of the chart those that apps know, else the listeners' own. */}}
{{- define "cmail-proxy.servicePorts" -}}
{{- if .Values.service.ports -}}
{{- toYaml .Values.service.ports -}}
{{- else if .Values.config.listeners -}}
{{- range .Values.config.listeners }}
- {name: smtp-{{ int (.port | default 2525) }}, port: {{ int (.port | default 2525) }}, targetPort: {{ int (.port | default 2525) }}}
{{- end -}}
{{- else -}}
- {name: smtp, port: 25, targetPort: 2525}
- {name: submission, port: 587, targetPort: 2525}
- {name: submissions, port: 465, targetPort: 2465}
- {name: smtp-alt, port: 2525, targetPort: 2525}
{{- end -}}
{{- end -}}

{{/* "yes" where the chart makes the token, because nobody else may send. */}}
{{- define "cmail-proxy.generatesToken" -}}
{{- $v := .Values -}}
{{- if and $v.credentials.generateToken (not (or $v.credentials.tokens $v.credentials.logins $v.config.tokens $v.config.logins)) -}}
{{- $wanted := not $v.config.listeners -}}
{{- range $v.config.listeners -}}{{- if ne (.auth | default "required") "none" -}}{{- $wanted = true -}}{{- end -}}{{- end -}}
{{- if $wanted -}}yes{{- end -}}
{{- end -}}
{{- end -}}

{{- define "cmail-proxy.settings" -}}
{{- $v := .Values -}}
{{- $settings := mergeOverwrite (include "cmail-proxy.defaults" . | fromYaml) (deepCopy $v.config) -}}
{{- if ne $v.mode "sidecar" -}}{{/* the proxy's own default is 127.0.0.1, which no Service leads to */}}
{{- range $settings.listeners -}}{{- if not .address -}}{{- $_ := set . "address" $v.listenAddress -}}{{- end -}}{{- end -}}
{{- end -}}
{{- $tokens := list -}}
{{- if include "cmail-proxy.generatesToken" . -}}
{{- $tokens = append $tokens (dict "name" "generated" "token_file" "/etc/cmail-proxy/secrets/token") -}}
{{- end -}}
{{- range $i, $token := $v.credentials.tokens -}}
{{- $tokens = append $tokens (dict "name" $token.name "token_file" (printf "/etc/cmail-proxy/secrets/token-%d" $i)) -}}
{{- end -}}
{{- with concat $tokens ($v.config.tokens | default list) -}}{{- $_ := set $settings "tokens" . -}}{{- end -}}
{{- $logins := list -}}
{{- range $i, $login := $v.credentials.logins -}}
{{- $file := printf "/etc/cmail-proxy/secrets/login-%d" $i -}}
{{- $logins = append $logins (merge (dict "password_file" $file) (pick $login "name" "provider" "discard")) -}}
{{- end -}}
{{- with concat $logins ($v.config.logins | default list) -}}{{- $_ := set $settings "logins" . -}}{{- end -}}
{{- $keys := list -}}
{{- range $i, $key := $v.credentials.dkim -}}
{{- $file := printf "/etc/cmail-proxy/secrets/dkim-%d" $i -}}
{{- $keys = append $keys (merge (dict "key_file" $file) (pick $key "domain" "selector")) -}}
{{- end -}}
{{- if $keys -}}
{{- $deliver := $settings.deliver | default dict -}}
{{- $_ := set $deliver "dkim" (concat $keys ($deliver.dkim | default list)) -}}
{{- $_ := set $settings "deliver" $deliver -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}

{{/* What the chart's own Secret holds: whatever was written into the values instead of into a Secret. */}}
{{- define "cmail-proxy.secretData" -}}
{{- $data := dict -}}
{{- range $name := list "relay" "smarthost" -}}
{{- $login := index $.Values.credentials $name -}}
{{- if not $login.existingSecret -}}
{{- with $login.username -}}{{- $_ := set $data (printf "%s-username" $name) . -}}{{- end -}}
{{- with $login.password -}}{{- $_ := set $data (printf "%s-password" $name) . -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- range $i, $token := .Values.credentials.tokens -}}
{{- with $token.token -}}{{- $_ := set $data (printf "token-%d" $i) . -}}{{- end -}}
{{- end -}}
{{- range $i, $login := .Values.credentials.logins -}}
{{- with $login.username -}}{{- $_ := set $data (printf "login-%d-username" $i) . -}}{{- end -}}
{{- with $login.password -}}{{- $_ := set $data (printf "login-%d" $i) . -}}{{- end -}}
{{- end -}}
{{- toYaml $data -}}
{{- end -}}

{{/* Pods restart when settings change, or a secret in the values. Rules, certificates and Secrets of others are not in it. */}}
{{- define "cmail-proxy.checksum" -}}
checksum/settings: {{ printf "%s\n%s" (include "cmail-proxy.settings" .) (include "cmail-proxy.secretData" .) | sha256sum }}
{{- end -}}

{{/* Everything that is wrong with the values beyond what the schema sees, at once. */}}
{{- define "cmail-proxy.validate" -}}
{{- $v := .Values -}}
{{- $settings := include "cmail-proxy.settings" . | fromYaml -}}
{{- $problems := list -}}
{{- $hint := "it would stand in a ConfigMap; put it below `credentials`, or into a Secret that is mounted" -}}
{{- if ($v.config.relay | default dict).password -}}
{{- $problems = append $problems (printf "config.relay.password: %s" $hint) -}}
{{- end -}}
{{- if (($v.config.deliver | default dict).smarthost | default dict).password -}}
{{- $problems = append $problems (printf "config.deliver.smarthost.password: %s" $hint) -}}
{{- end -}}
{{- range $i, $token := $v.config.tokens -}}
{{- if $token.token -}}{{- $problems = append $problems (printf "config.tokens[%d].token: %s" $i $hint) -}}{{- end -}}
{{- end -}}
{{- range $i, $login := $v.config.logins -}}
{{- if $login.password -}}{{- $problems = append $problems (printf "config.logins[%d].password: %s" $i $hint) -}}{{- end -}}
{{- end -}}
{{- $relay := $settings.relay | default dict -}}
{{- if ne $v.mode "core" -}}
{{- if ne $settings.route "relay" -}}
{{- $problems = append $problems (printf "config.route: %s needs a volume for its queue; set mode: core" $settings.route) -}}
{{- else if not $relay.host -}}
{{- $problems = append $problems (printf "config.relay.host: nothing; mode %s needs the platform's SMTP host, or set mode: core" $v.mode) -}}
{{- end -}}
{{- else if ne $settings.route "deliver" -}}
{{- $problems = append $problems (printf "config.route: %s keeps no mail; set mode: gateway or mode: sidecar" $settings.route) -}}
{{- end -}}
{{- $deliver := $settings.deliver | default dict -}}
{{- $tracking := $settings.tracking | default dict -}}
{{- if and (eq $v.mode "core") (eq ($deliver.via | default "mailbox") "smarthost") (not ($deliver.smarthost | default dict).host) -}}
{{- $problems = append $problems "config.deliver.smarthost.host: nothing; the host that gets everything, for via: smarthost" -}}
{{- end -}}
{{- range $key, $host := dict "relay" $relay.host "deliver.smarthost" ($deliver.smarthost | default dict).host -}}
{{- if regexMatch "^[^:]+:[0-9]+$" ($host | default "") -}}
{{- $problems = append $problems (printf "config.%s.host: %s has a port, which belongs into config.%s.port" $key $host $key) -}}
{{- end -}}
{{- end -}}
{{- $providers := ($settings.rules | default dict).providers | default (list "mailgun" "mailjet" "mandrill" "postmark" "sendgrid") -}}
{{- range $settings.logins -}}
{{- if not (has (.provider | default "none") (append $providers "none")) -}}
{{- $problems = append $problems (printf "logins (%s): provider %s is none of config.rules.providers; they are %s" .name .provider (join ", " $providers)) -}}
{{- end -}}
{{- end -}}
{{- $tracked := or (ne (toString $tracking.opens) "false") (ne (toString $tracking.clicks) "false") -}}
{{- if and (eq $v.mode "core") (ne ($deliver.via | default "mailbox") "mailbox") $tracked (not $tracking.base_url) -}}
{{- $problems = append $problems "config.tracking.base_url: nothing, and tracking is on; the URL of the Ingress, or opens: false and clicks: false" -}}
{{- end -}}
{{- $ports := list -}}
{{- $reached := list -}}
{{- range $settings.listeners -}}
{{- $ports = append $ports (int (.port | default 2525)) -}}
{{- if not (or (hasPrefix "127." (.address | default "")) (eq (.address | default "") "::1")) -}}{{- $reached = append $reached (int (.port | default 2525)) -}}{{- end -}}
{{- end -}}
{{- if ne $v.mode "sidecar" -}}
{{- range include "cmail-proxy.servicePorts" . | fromYamlArray -}}
{{- if not (has (int .targetPort) $ports) -}}
{{- $problems = append $problems (printf "service.ports: %s leads to port %d, on which nothing of config.listeners listens; they have %s" .name (int .targetPort) (join ", " $ports)) -}}
{{- else if not (has (int .targetPort) $reached) -}}
{{- $problems = append $problems (printf "service.ports: %s leads to port %d, which config.listeners has on the pod's own loopback; leave its address out" .name (int .targetPort)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $shutdown := $settings.shutdown -}}
{{- $needed := add ($shutdown.delay_seconds | default 0) ($shutdown.drain_seconds | default 30) -}}
{{- if and $v.terminationGracePeriodSeconds (le (int $v.terminationGracePeriodSeconds) (int $needed)) -}}
{{- $problems = append $problems (printf "terminationGracePeriodSeconds: %d, though config.shutdown takes up to %d seconds; more than that, or 0 for what is needed" (int $v.terminationGracePeriodSeconds) $needed) -}}
{{- end -}}
{{- if and $v.hostAliases.enabled (has ($relay.host | default "") (include "cmail-proxy.aliases" . | fromYamlArray)) -}}
{{- $problems = append $problems (printf "hostAliases: %s is config.relay.host, too; every message would come back" $relay.host) -}}
{{- end -}}
{{- if and $v.hostAliases.enabled (not (include "cmail-proxy.aliases" . | fromYamlArray)) -}}
{{- $problems = append $problems "hostAliases: enabled without names; write them there or in config.tls.names" -}}
{{- end -}}
{{- range $i, $token := $v.credentials.tokens -}}
{{- if eq (not $token.token) (not $token.existingSecret) -}}
{{- $problems = append $problems (printf "credentials.tokens[%d] (%s): needs either token or existingSecret" $i $token.name) -}}
{{- end -}}
{{- end -}}
{{- range $i, $login := $v.credentials.logins -}}
{{- if eq (not $login.password) (not $login.existingSecret) -}}
{{- $problems = append $problems (printf "credentials.logins[%d] (%s): needs either password or existingSecret" $i $login.name) -}}
{{- end -}}
{{- end -}}
{{- range $name := list "relay" "smarthost" -}}
{{- $login := index $v.credentials $name -}}
{{- if and $login.existingSecret (or $login.username $login.password) -}}
{{- $problems = append $problems (printf "credentials.%s: existingSecret and username or password; only one of the two" $name) -}}
{{- else if ne (not $login.username) (not $login.password) -}}
{{- $problems = append $problems (printf "credentials.%s: username and password go together" $name) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $v.mode "core") (has "ReadWriteMany" $v.persistence.accessModes) -}}
{{- $problems = append $problems "persistence.accessModes: the queue is a SQLite file, which needs a volume of its own: ReadWriteOnce or ReadWriteOncePod" -}}
{{- end -}}
{{- if and $v.ingress.enabled (ne $v.mode "core") -}}
{{- $problems = append $problems (printf "ingress: mode %s has no public port; only mode core has" $v.mode) -}}
{{- end -}}
{{- if and $v.ingress.enabled (not $v.ingress.host) -}}
{{- $problems = append $problems "ingress.host: nothing; the host of config.tracking.base_url" -}}
{{- end -}}
{{- $alerts := list -}}
{{- range (.Files.Get "files/alerts.yaml" | fromYaml).groups -}}
{{- range .rules -}}{{- $alerts = append $alerts .alert -}}{{- end -}}
{{- end -}}
{{- range $v.metrics.prometheusRule.disabled -}}
{{- if not (has . $alerts) -}}
{{- $problems = append $problems (printf "metrics.prometheusRule.disabled: %s is no alert of files/alerts.yaml" .) -}}
{{- end -}}
{{- end -}}
{{- if $problems -}}
{{- fail (printf "\n\nThe values of cmail-proxy do not fit together:\n  - %s\n" (join "\n  - " $problems)) -}}
{{- end -}}
{{- end -}}

{{- define "cmail-proxy.aliases" -}}
{{- toYaml (.Values.hostAliases.names | default ((.Values.config.tls | default dict).names) | default list) -}}
{{- end -}}
