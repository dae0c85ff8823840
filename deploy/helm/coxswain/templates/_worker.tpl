{{- /* A worker's pod. `restart` is its restart policy, `name` its container's name, `root` the chart. */ -}}
{{- define "coxswain.workerPod" -}}
metadata:
  labels:
    {{- include "coxswain.workerLabels" .root | nindent 4 }}
  {{- $kueue := .root.Values.kueue }}
  {{- if or .root.Values.workers.podAnnotations $kueue.requiredTopology $kueue.preferredTopology }}
  annotations:
    {{- with $kueue.requiredTopology }}
    kueue.x-k8s.io/podset-required-topology: {{ . }}
    {{- end }}
    {{- with $kueue.preferredTopology }}
    kueue.x-k8s.io/podset-preferred-topology: {{ . }}
    {{- end }}
    {{- with .root.Values.workers.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
spec:
  restartPolicy: {{ .restart }}
  serviceAccountName: {{ .root.Release.Name }}-worker
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- include "coxswain.pullSecrets" .root | nindent 2 }}
  # After SIGTERM a worker works to the end of the step, at most {{ .root.Values.workers.graceSeconds }} seconds (--grace-s).
  terminationGracePeriodSeconds: {{ add .root.Values.workers.graceSeconds 40 }}
  securityContext:
    {{- include "coxswain.podSecurity" .root | nindent 4 }}
  {{- include "coxswain.placement" .root.Values.workers | nindent 2 }}
  containers:
    - name: {{ .name }}
      image: {{ .root.Values.image.worker }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args:
        - --coordinator
        - https://{{ .root.Release.Name }}-0.{{ .root.Release.Name }}:{{ .root.Values.coordinator.port }}
        # The token of this pod's service account proves who it is. The kubelet renews the file, and a pod that
        # is started again has a token too.
        - --join-file
        - /var/run/secrets/coxswain/token
        - --tls-ca
        - /var/run/secrets/coxswain/ca.pem
        - --data-listen
        - 0.0.0.0:{{ .root.Values.workers.dataPort }}
        {{- if gt (int .root.Values.workers.gpus) 1 }}
        # A worker for each GPU of the pod, on this port and the following ones.
        - --devices
        - cuda
        {{- else }}
        - --device
        - {{ .root.Values.workers.device }}
        {{- end }}
        - --grace-s
        - {{ .root.Values.workers.graceSeconds | quote }}
        # The coordinator's image may have to be pulled first.
        - --connect-timeout-s
        - "600"
        # Where the coordinator's node is lost, its volume takes minutes to move.
        - --coordinator-timeout-s
        - {{ .root.Values.workers.coordinatorTimeoutSeconds | quote }}
        {{- range .root.Values.workers.extraArgs }}
        - {{ . | quote }}
        {{- end }}
      env:
        # The token is for workers of this name only.
        - name: COXSWAIN_WORKER_NAME
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
        {{- with .root.Values.workers.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      # No probes: the coordinator watches over its workers.
      ports:
        - name: tensors
          containerPort: {{ .root.Values.workers.dataPort }}
      resources:
        {{- $resources := .root.Values.workers.resources }}
        {{- with .root.Values.workers.gpus }}
        {{- $resources = merge (dict "limits" (dict "nvidia.com/gpu" .) "requests" (dict "nvidia.com/gpu" .)) $resources }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      # The reason of a failure shows in `kubectl describe pod`.
      terminationMessagePolicy: FallbackToLogsOnError
      securityContext:
        {{- include "coxswain.containerSecurity" .root | nindent 8 }}
      volumeMounts:
        - name: identity
          mountPath: /var/run/secrets/coxswain
          readOnly: true
        - name: runs
          mountPath: {{ .root.Values.runs.mountPath }}
        - name: shm
          mountPath: /dev/shm
        - name: tmp
          mountPath: /tmp
  volumes:
    - name: identity
      projected:
        sources:
          - serviceAccountToken:
              path: token
              audience: {{ .root.Values.join.audience }}
              expirationSeconds: {{ .root.Values.join.tokenSeconds }}
          - configMap:
              name: {{ include "coxswain.caConfigMap" .root }}
              items:
                - key: ca.pem
                  path: ca.pem
    - name: runs
      persistentVolumeClaim:
        claimName: {{ include "coxswain.runsClaim" .root }}
    - name: shm
      emptyDir:
        medium: Memory
        sizeLimit: {{ .root.Values.workers.shm }}
    - name: tmp
      emptyDir:
        sizeLimit: 512Mi
{{- end }}

{{- /* The Job of all workers: its `spec`. */ -}}
{{- define "coxswain.workerJob" -}}
# Each pod has an index, and another pod takes it once this one has failed.
completionMode: Indexed
completions: {{ .root.Values.workers.count }}
parallelism: {{ .root.Values.workers.count }}
{{ include "coxswain.failureRules" . }}
template:
  {{- include "coxswain.workerPod" (dict "root" .root "name" .name "restart" "Never") | nindent 2 }}
{{- end }}

{{- define "coxswain.failureRules" -}}
# A worker that dies, is refused, or has lost its coordinator fails, and another pod takes its place: its run goes
# on. Only one that `coxswain drain` took out ends with 0, which completes its index.
backoffLimitPerIndex: {{ .root.Values.workers.failuresPerPod }}
podReplacementPolicy: Failed
podFailurePolicy:
  rules:
    # Evicted, preempted, or on a node that is drained: it worked to the end of the step.
    - action: Ignore
      onPodConditions:
        - type: DisruptionTarget
          status: "True"
    # Bad arguments: another pod would end the same way.
    - action: FailJob
      onExitCodes:
        operator: In
        values: [2]
    # Asked to stop by SIGINT or SIGTERM.
    - action: Ignore
      onExitCodes:
        operator: In
        values: [130, 143]
{{- end }}
