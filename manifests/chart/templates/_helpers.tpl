{{/* Names, labels and images that several templates need. */}}

{{- define "vpc-cni.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "vpc-cni.fullname" -}}
{{- default (printf "%s-%s" .Release.Name (include "vpc-cni.name" .)) .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "vpc-cni.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "vpc-cni.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* By which the DaemonSet finds its pods: never changed in a release. */}}
{{- define "vpc-cni.selector" -}}
{{- if .Values.originalMatchLabels -}}
k8s-app: aws-node
{{- else -}}
app.kubernetes.io/name: {{ include "vpc-cni.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
{{- end -}}

{{- define "vpc-cni.podLabels" -}}
app.kubernetes.io/name: {{ include "vpc-cni.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
k8s-app: aws-node
{{- end -}}

{{- define "vpc-cni.labels" -}}
{{ include "vpc-cni.podLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "vpc-cni.helperLabels" -}}
app.kubernetes.io/name: {{ .Values.metricsHelper.name }}
app.kubernetes.io/instance: {{ .Values.metricsHelper.name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "vpc-cni.image" -}}
{{- with .Values.image -}}
{{- if .override -}}
{{- .override -}}
{{- else -}}
{{- $none := "image.override: name the image (or set image.repository and image.tag); none is published, manifests/guides/install.md says how to make one" -}}
{{- printf "%s:%s" (required $none .repository) (default $.Chart.AppVersion .tag | toString) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A container's. One that is privileged escalates by being that, and the API server refuses a manifest that says it may not: the default of
     this chart, to which Helm adds `privileged: true` of values that were written for the Go version's. */}}
{{- define "vpc-cni.securityContext" -}}
{{- if (default dict .).privileged -}}
{{- omit . "allowPrivilegeEscalation" | toYaml -}}
{{- else -}}
{{- toYaml . -}}
{{- end -}}
{{- end -}}

{{/* A map as the environment of a container: texts, whatever YAML made of them. */}}
{{- define "vpc-cni.env" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- end -}}

{{/* What Kubernetes tells a container, and what of its environment is no plain text. */}}
{{- define "vpc-cni.told" -}}
- name: MY_NODE_NAME
  valueFrom: { fieldRef: { fieldPath: spec.nodeName } }
- name: MY_POD_NAME
  valueFrom: { fieldRef: { fieldPath: metadata.name } }
- name: IPAMD_POD_UID
  valueFrom: { fieldRef: { fieldPath: metadata.uid } }
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What cannot mean what it means in the Go version's chart fails here, by its name. */}}
{{- define "vpc-cni.refuse" -}}
{{- if .Values.cniConfig.enabled -}}
{{- fail "cniConfig: the daemon writes the conflist from its settings; a file of your own is not supported" -}}
{{- end -}}
{{- if eq (toString .Values.crd.create) "false" -}}
{{- fail "crd.create: no value keeps Helm from making the resource ENIConfig of this chart where there is none; --skip-crds does" -}}
{{- end -}}
{{- $known := dict "image" (list "repository" "tag" "override" "pullPolicy") "init.image" (list "override" "pullPolicy") -}}
{{- range $path, $image := dict "image" .Values.image "init.image" .Values.init.image -}}
{{- range $key, $value := omit $image "override" -}}
{{- if and $value (not $image.override) (not (has $key (get $known $path))) -}}
{{- fail (printf "%s.%s names no image of this chart; set image.repository and image.tag, or %s.override" $path $key $path) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (eq (toString .Values.enableNetworkPolicy) "true") (not .Values.nodeAgent.enabled) -}}
{{- fail "enableNetworkPolicy: nothing enforces network policies unless nodeAgent.enabled is true" -}}
{{- end -}}
{{- if contains "grpc-health-probe" (toJson (list .Values.livenessProbe .Values.readinessProbe)) -}}
{{- fail "livenessProbe, readinessProbe: there is no grpc-health-probe in this image; /ipamd status tells whether pods can be served" -}}
{{- end -}}
{{- range $name := list "livenessProbe" "readinessProbe" -}}
{{- $handlers := keys (pick (default dict (get $.Values $name)) "exec" "httpGet" "tcpSocket" "grpc") | sortAlpha -}}
{{- if gt (len $handlers) 1 -}}
{{- fail (printf "%s: has %s, and Kubernetes takes one of them; set the other to null" $name (join " and " $handlers)) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.nodeAgent.enabled (not .Values.nodeAgent.image.override) -}}
{{- fail "nodeAgent.image.override: name the image of the network policy agent" -}}
{{- end -}}
{{- end -}}
