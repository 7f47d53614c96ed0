package lab

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"corelane/lab/internal/cluster"
	"corelane/lab/internal/kubelet"
	"corelane/lab/internal/observe"
	"corelane/lab/manifests"
)

const systemNamespace = "istio-system"

// ProxyName is the pod of the newest proxy of a node.
func (l *Lab) ProxyName(node int) string { return l.proxyName(node, l.generation[node]) }

func (l *Lab) proxyName(node, generation int) string {
	return fmt.Sprintf("ztunnel-%d-%d", node, generation)
}

// StartProxy starts a new proxy on a node, beside one that may run there already.
func (l *Lab) StartProxy(ctx context.Context, node int, environment map[string]string) error {
	l.generation[node]++
	text, err := manifests.Fill("proxy.yaml", map[string]any{
		"Name": l.ProxyName(node), "Node": NodeName(node), "Log": l.options.ProxyLog, "Environment": environment,
	})
	if err != nil {
		return err
	}
	return l.Apply(ctx, text)
}

// AwaitProxy waits until the newest proxy of a node is ready.
func (l *Lab) AwaitProxy(ctx context.Context, node int) error {
	return l.AwaitPod(ctx, systemNamespace, l.ProxyName(node), "gets ready", cluster.IsReady)
}

// StopProxy ends the proxy before the newest one of a node and waits until it is gone.
func (l *Lab) StopProxy(ctx context.Context, node int) error {
	return l.DeletePod(ctx, systemNamespace, l.proxyName(node, l.generation[node]-1), -1)
}

// ReplaceProxy starts a new proxy with this environment, waits until it is ready, and ends the one before.
func (l *Lab) ReplaceProxy(ctx context.Context, node int, environment map[string]string) error {
	if err := l.StartProxy(ctx, node, environment); err != nil {
		return err
	}
	if err := l.AwaitProxy(ctx, node); err != nil {
		return err
	}
	return l.StopProxy(ctx, node)
}

// KillProxy ends the newest proxy of a node at once, as a crash does; the kubelet starts it again.
func (l *Lab) KillProxy(ctx context.Context, node int) error {
	pod := l.ProxyName(node)
	object, err := l.Pod(ctx, systemNamespace, pod)
	if err != nil {
		return err
	}
	script := fmt.Sprintf("kill -9 $(cat /run/cgroup/%s/kubepods/pod%s/istio-proxy/cgroup.procs)", l.options.Run, object.UID)
	outcome, err := l.ExecNode(ctx, node, "sh", "-c", script)
	if err != nil || outcome.Code != 0 {
		return fmt.Errorf("kill the proxy of node %d: %s %w", node, outcome.Stderr, err)
	}
	return l.AwaitPod(ctx, systemNamespace, pod, "is seen to be down", func(pod *corev1.Pod) bool { return !cluster.IsReady(pod) })
}

// Access reads what all proxies of a node logged since a time.
func (l *Lab) Access(node int, since time.Time) ([]observe.Access, error) {
	var all []observe.Access
	for generation := 1; generation <= l.generation[node]; generation++ {
		path := kubelet.LogFile(l.logs(), systemNamespace, l.proxyName(node, generation))
		lines, err := observe.ReadAccess(path, since)
		if err != nil {
			return nil, err
		}
		all = append(all, lines...)
	}
	return all, nil
}

// ProxyPage gets a page of the newest proxy of a node, from within its pod.
func (l *Lab) ProxyPage(ctx context.Context, node int, url string) (string, error) {
	outcome, err := l.Exec(ctx, systemNamespace, l.ProxyName(node), "workload", "request", "-raw", url)
	if err != nil {
		return "", err
	}
	if outcome.Code != 0 {
		return "", fmt.Errorf("%s of the proxy on node %d: %s", url, node, outcome.Stderr)
	}
	return outcome.Stdout, nil
}

// Dump gets the configuration dump of the newest proxy of a node.
func (l *Lab) Dump(ctx context.Context, node int) (*observe.Dump, error) {
	page, err := l.ProxyPage(ctx, node, "http://127.0.0.1:15000/config_dump")
	if err != nil {
		return nil, err
	}
	return observe.ParseDump(page)
}

// DeletePod deletes a pod and waits until it is gone; a negative grace is the pod's own.
func (l *Lab) DeletePod(ctx context.Context, namespace, name string, grace int64) error {
	options := metav1.DeleteOptions{}
	if grace >= 0 {
		options.GracePeriodSeconds = &grace
	}
	if err := l.Kube.CoreV1().Pods(namespace).Delete(ctx, name, options); err != nil {
		return fmt.Errorf("delete pod %s/%s: %w", namespace, name, err)
	}
	return cluster.Until(ctx, "end of pod "+namespace+"/"+name, func() (bool, error) {
		_, err := l.Pod(ctx, namespace, name)
		return apierrors.IsNotFound(err), nil
	})
}
