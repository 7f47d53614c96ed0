package lab

import (
	"context"

	"corelane/lab/manifests"
)

// ModeLabel enrols a namespace or pod.
const ModeLabel = "istio.io/dataplane-mode"

// shopPod is a pod of the application.
type shopPod struct {
	Name, Namespace, App, Instance, Node, Account string
}

// shopPods: a client and a server on each node, one client with another account, and a pair in a namespace that never
// joins the mesh.
var shopPods = []shopPod{
	{"client-1", "shop", "client", "1", NodeName(1), "client"},
	{"client-2", "shop", "client", "2", NodeName(2), "client"},
	{"guest-1", "shop", "guest", "1", NodeName(1), "guest"},
	{"echo-1", "shop", "echo", "1", NodeName(1), "echo"},
	{"echo-2", "shop", "echo", "2", NodeName(2), "echo"},
	{"outsider-1", "plain", "outsider", "1", NodeName(1), "default"},
}

// StartShop applies the application and waits until it is ready, not enrolled yet.
func (l *Lab) StartShop(ctx context.Context) error {
	text, err := manifests.Fill("shop.yaml", map[string]any{"Pods": shopPods})
	if err != nil {
		return err
	}
	if err := l.Apply(ctx, text); err != nil {
		return err
	}
	if err := l.AwaitReady(ctx, "plain", false); err != nil {
		return err
	}
	return l.AwaitReady(ctx, "shop", false)
}

// Enrol labels the namespace shop and waits until every pod is captured.
func (l *Lab) Enrol(ctx context.Context) error {
	if err := l.Label(ctx, "shop", ModeLabel, "ambient"); err != nil {
		return err
	}
	return l.AwaitReady(ctx, "shop", true)
}

// Leave removes the label and waits until no pod is captured.
func (l *Lab) Leave(ctx context.Context) error {
	if err := l.Label(ctx, "shop", ModeLabel, ""); err != nil {
		return err
	}
	return l.AwaitReady(ctx, "shop", false)
}
