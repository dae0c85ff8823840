{{- define "coxswain.labels" -}}
app.kubernetes.io/name: coxswain
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "coxswain.coordinatorLabels" -}}
{{ include "coxswain.labels" . }}
app.kubernetes.io/component: coordinator
{{- end }}

{{- define "coxswain.workerLabels" -}}
{{ include "coxswain.labels" . }}
app.kubernetes.io/component: worker
{{- end }}

{{- define "coxswain.tlsSecret" -}}
{{ .Values.tls.secret | default (printf "%s-tls" .Release.Name) }}
{{- end }}

{{- define "coxswain.caConfigMap" -}}
{{ .Values.tls.caConfigMap | default (printf "%s-ca" .Release.Name) }}
{{- end }}

{{- define "coxswain.runsClaim" -}}
{{ .Values.runs.existingClaim | default (printf "%s-runs" .Release.Name) }}
{{- end }}

{{- define "coxswain.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "coxswain.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop:
    - ALL
{{- end }}

{{- /* Where pods go: of the coordinator or of workers, whose values are given. */ -}}
{{- define "coxswain.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end }}

{{- define "coxswain.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "coxswain.kueueLabels" -}}
{{- with .Values.kueue.queue }}
kueue.x-k8s.io/queue-name: {{ . }}
{{- end }}
{{- end }}
