{{/* The agent that enforces network policies: a program of the Go version, beside the daemon. */}}
{{- define "vpc-cni.nodeAgent" -}}
{{- with .Values.nodeAgent -}}
- name: aws-eks-nodeagent
  image: {{ .image.override }}
  imagePullPolicy: {{ .image.pullPolicy }}
  env:
    - name: MY_NODE_NAME
      valueFrom: { fieldRef: { fieldPath: spec.nodeName } }
  args:
    - --enable-ipv6={{ .enableIpv6 }}
    - --enable-network-policy={{ $.Values.enableNetworkPolicy }}
    - --enable-cloudwatch-logs={{ .enableCloudWatchLogs }}
    - --enable-policy-event-logs={{ .enablePolicyEventLogs }}
    - --log-file={{ .networkPolicyAgentLogFileLocation }}
    - --metrics-bind-addr=:{{ .metricsBindAddr }}
    - --health-probe-bind-addr=:{{ .healthProbeBindAddr }}
    - --conntrack-cache-cleanup-period={{ int .conntrackCacheCleanupPeriod }}
    - --conntrack-cache-table-size={{ int .conntrackCacheTableSize }}
    - --log-level={{ .logLevel }}
  ports: [{ name: agentmetrics, containerPort: {{ .metricsBindAddr }} }]
  securityContext:
    {{- include "vpc-cni.securityContext" .securityContext | nindent 4 }}
  {{- with .resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    - { name: cni-bin-dir, mountPath: /host/opt/cni/bin }
    - { name: bpf-pin-path, mountPath: /sys/fs/bpf }
    - { name: log-dir, mountPath: /var/log/aws-routed-eni }
    - { name: run-dir, mountPath: /var/run/aws-node }
{{- end }}
{{- end -}}
