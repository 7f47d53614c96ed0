package lab

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"corelane/lab/internal/cluster"
	"corelane/lab/internal/kubelet"
	"corelane/lab/internal/observe"
	"corelane/lab/manifests"
)

// WaypointLabel has the Services of a namespace use a waypoint.
const WaypointLabel = "istio.io/use-waypoint"

// Waypoint is the waypoint of the namespace shop.
const Waypoint = "waypoint"

func (l *Lab) waypointObjects() ([]byte, error) {
	return manifests.Fill("waypoint.yaml", map[string]any{"Node": NodeName(2), "Log": l.options.ProxyLog})
}

// StartWaypoint applies the Gateway of the namespace shop and the pod that serves it, and waits until that is ready.
func (l *Lab) StartWaypoint(ctx context.Context) error {
	text, err := l.waypointObjects()
	if err != nil {
		return err
	}
	if err := l.Apply(ctx, text); err != nil {
		return err
	}
	return l.AwaitPod(ctx, "shop", Waypoint, "gets ready", cluster.IsReady)
}

// StopWaypoint deletes them.
func (l *Lab) StopWaypoint(ctx context.Context) error {
	text, err := l.waypointObjects()
	if err != nil {
		return err
	}
	return l.Delete(ctx, text)
}

// GatewayCondition is the status of a condition of the waypoint's Gateway, as istiod has written it.
func (l *Lab) GatewayCondition(ctx context.Context, kind string) (string, error) {
	object, err := l.Get(ctx, "gateway.networking.k8s.io/v1", "Gateway", "shop", Waypoint)
	if err != nil {
		return "", err
	}
	conditions, _, err := unstructured.NestedSlice(object.Object, "status", "conditions")
	if err != nil {
		return "", fmt.Errorf("status of the Gateway: %w", err)
	}
	for _, entry := range conditions {
		if condition, isMap := entry.(map[string]any); isMap && condition["type"] == kind {
			return fmt.Sprint(condition["status"]), nil
		}
	}
	return "not there", nil
}

// WaypointAccess reads what the waypoint logged since a time.
func (l *Lab) WaypointAccess(since time.Time) ([]observe.Access, error) {
	return observe.ReadAccess(kubelet.LogFile(l.logs(), "shop", Waypoint), since)
}
