package kubelet

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"corelane/lab/internal/network"
)

// statusWriter reports the state of one pod.
type statusWriter struct {
	client kubernetes.Interface
	pod    *corev1.Pod

	mutex  sync.Mutex
	status corev1.PodStatus
}

// running reports addresses and that the containers run; the pod becomes ready by its probe.
func (w *statusWriter) running(address string, node int) {
	w.write(func(status *corev1.PodStatus) {
		now := metav1.Now()
		status.Phase = corev1.PodRunning
		status.PodIP, status.PodIPs = address, []corev1.PodIP{{IP: address}}
		status.HostIP = network.NodeAddress(node)
		status.StartTime = &now
	})
}

func (w *statusWriter) setReady(ready bool) {
	w.write(func(status *corev1.PodStatus) {
		word := corev1.ConditionFalse
		if ready {
			word = corev1.ConditionTrue
		}
		status.Conditions = []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
			{Type: corev1.PodReady, Status: word, LastTransitionTime: metav1.Now()},
			{Type: corev1.ContainersReady, Status: word, LastTransitionTime: metav1.Now()},
		}
	})
}

// ended reports the exit of a pod that is not restarted.
func (w *statusWriter) ended(code int) {
	w.setReady(false)
	w.write(func(status *corev1.PodStatus) {
		status.Phase = corev1.PodSucceeded
		if code != 0 {
			status.Phase = corev1.PodFailed
		}
	})
}

func (w *statusWriter) fail(cause error) {
	w.write(func(status *corev1.PodStatus) { status.Message = cause.Error() })
}

func (w *statusWriter) write(change func(*corev1.PodStatus)) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	change(&w.status)
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": w.pod.UID}, "status": w.status})
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
		defer cancel()
		pods := w.client.CoreV1().Pods(w.pod.Namespace)
		_, err = pods.Patch(ctx, w.pod.Name, types.MergePatchType, body, metav1.PatchOptions{}, "status")
	}
	if err != nil {
		slog.Warn("a pod's status is not reported", "pod", w.pod.Namespace+"/"+w.pod.Name, "error", err)
	}
}
