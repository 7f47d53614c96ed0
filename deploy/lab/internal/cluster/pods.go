package cluster

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Redirection is the annotation by which the node agent says that a pod is captured.
const Redirection = "ambient.istio.io/redirection"

// Pod gets a pod.
func (c *Client) Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	return c.Kube.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
}

// IsReady says whether a pod's condition Ready is true.
func IsReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(condition corev1.PodCondition) bool {
		return condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue
	})
}

// AwaitReady waits until all pods of a namespace are ready, and enrolled or not as asked.
func (c *Client) AwaitReady(ctx context.Context, namespace string, enrolled bool) error {
	return Until(ctx, fmt.Sprintf("readiness of the pods in %s (enrolled: %t)", namespace, enrolled), func() (bool, error) {
		pods, err := c.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		for _, pod := range pods.Items {
			if !IsReady(&pod) || (pod.Annotations[Redirection] == "enabled") != enrolled {
				return false, nil
			}
		}
		return len(pods.Items) > 0, nil
	})
}

// AwaitPod waits until a pod satisfies a condition.
func (c *Client) AwaitPod(ctx context.Context, namespace, name, what string, condition func(*corev1.Pod) bool) error {
	return Until(ctx, fmt.Sprintf("pod %s/%s %s", namespace, name, what), func() (bool, error) {
		pod, err := c.Pod(ctx, namespace, name)
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return err == nil && condition(pod), err
	})
}

// AwaitEstablished waits until every custom resource definition is served.
func (c *Client) AwaitEstablished(ctx context.Context) error {
	definitions := schema.GroupVersionResource{
		Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions",
	}
	return Until(ctx, "establishing of the custom resources", func() (bool, error) {
		list, err := c.dynamic.Resource(definitions).List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		return !slices.ContainsFunc(list.Items, func(item unstructured.Unstructured) bool { return !established(item) }), nil
	})
}

func established(definition unstructured.Unstructured) bool {
	conditions, _, err := unstructured.NestedSlice(definition.Object, "status", "conditions")
	return err == nil && slices.ContainsFunc(conditions, func(entry any) bool {
		condition, ok := entry.(map[string]any)
		return ok && condition["type"] == "Established" && condition["status"] == "True"
	})
}
