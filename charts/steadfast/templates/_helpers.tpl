{{- /* Of namespaced objects. */ -}}
{{- define "steadfast.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Of objects of the cluster: two releases may have one name in two namespaces. */ -}}
{{- define "steadfast.clusterName" -}}
{{ include "steadfast.fullname" . }}-{{ .Release.Namespace }}
{{- end -}}

{{- define "steadfast.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "steadfast.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "steadfast.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The operator names its pods by the first in the NetworkPolicies of jobs. */ -}}
{{- define "steadfast.selectorLabels" -}}
app.kubernetes.io/name: steadfast
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "steadfast.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "steadfast.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: steadfast
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- /* Exactly what the operator asks of objects in the namespaces that it looks after. */ -}}
{{- define "steadfast.jobRules" -}}
- apiGroups: [steadfast.dev]
  resources: [trainingjobs]
  verbs: [get, list, watch, delete]
- apiGroups: [steadfast.dev]
  resources: [trainingjobs/status]
  verbs: [update]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, create, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [get, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [create]
{{- end -}}

{{- define "steadfast.subjects" -}}
- kind: ServiceAccount
  name: {{ include "steadfast.serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
{{- end -}}

{{- define "steadfast.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "steadfast.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* Where the operator's pods may run. */ -}}
{{- define "steadfast.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
