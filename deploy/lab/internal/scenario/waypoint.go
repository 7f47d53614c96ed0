package scenario

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"corelane/lab/internal/cluster"
	"corelane/lab/internal/lab"
)

const shopURL = "http://echo.shop.svc.cluster.local"

// httpRoute leads a prefix to one instance.
var httpRoute = []byte(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: echo, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: echo, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /first}}]
    backendRefs: [{name: echo-1, port: 80}]
  - backendRefs: [{name: echo, port: 80}]`)

// pathPolicy is for the Service: the waypoint enforces it.
var pathPolicy = []byte(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: paths, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: echo}]
  rules:
  - from: [{source: {principals: ["cluster.local/ns/shop/sa/client"]}}]
    to: [{operation: {methods: [GET], paths: ["/first/{*}/items", "/open"]}}]`)

// waypoint serves the Gateway of an unmodified istiod.
func waypoint(ctx context.Context, s *stage) error {
	if err := s.StartWaypoint(ctx); err != nil {
		return err
	}
	if err := s.awaitGateway(ctx, "Programmed"); err != nil {
		return err
	}
	if err := s.Label(ctx, "shop", lab.WaypointLabel, lab.Waypoint); err != nil {
		return err
	}
	if err := s.throughWaypoint(ctx); err != nil {
		return err
	}
	if err := s.Apply(ctx, httpRoute); err != nil {
		return err
	}
	if err := s.answeredByPath(ctx, "a route of the Service", "/first/7/items", "echo-1"); err != nil {
		return err
	}
	if err := s.Apply(ctx, pathPolicy); err != nil {
		return err
	}
	for _, entry := range []struct {
		what, pod, path string
		status          int
	}{
		{"a policy of the Service: another path", "client-1", "/first/7/8/items", 403},
		{"another principal", "guest-1", "/open", 403},
		{"a path of its template", "client-1", "/first/7/items", 200},
		{"the principal, from the other node", "client-2", "/open", 200},
	} {
		if err := s.awaitStatus(ctx, entry.what, entry.pod, shopURL+entry.path, entry.status); err != nil {
			return err
		}
	}
	for _, object := range [][]byte{pathPolicy, httpRoute} {
		if err := s.Delete(ctx, object); err != nil {
			return err
		}
	}
	if err := s.awaitStatus(ctx, "after they are gone", "guest-1", shopURL+"/any", 200); err != nil {
		return err
	}
	if err := s.Label(ctx, "shop", lab.WaypointLabel, ""); err != nil {
		return err
	}
	if err := s.StopWaypoint(ctx); err != nil {
		return err
	}
	return s.await(ctx, "without the waypoint", "client-1", echoURL, true)
}

// awaitGateway expects that istiod finds the waypoint's Gateway in order.
func (s *stage) awaitGateway(ctx context.Context, condition string) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	var last string
	err := cluster.Until(ctx, condition, func() (bool, error) {
		var err error
		last, err = s.GatewayCondition(ctx, condition)
		return last == "True", err
	})
	s.Hold("condition "+condition+" of the Gateway", "True", last, err == nil)
	return nil
}

// throughWaypoint expects that requests come to the servers from the waypoint, with its identity, and that it knows who
// made them.
func (s *stage) throughWaypoint(ctx context.Context) error {
	pod, err := s.Pod(ctx, "shop", lab.Waypoint)
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	var client string
	err = cluster.Until(bounded, "requests through the waypoint", func() (bool, error) {
		results, err := s.Request(ctx, "shop", "client-1", shopURL+"/", 1)
		if err != nil || len(results) == 0 {
			return false, err
		}
		client, _, _ = net.SplitHostPort(results[0].Answer.Client)
		return client == pod.Status.PodIP, nil
	})
	s.Hold("a server's client", "the waypoint, "+pod.Status.PodIP, client, err == nil)
	since := time.Now()
	summary, err := s.succeed(ctx, "requests", "client-1", shopURL+"/", 40)
	if err != nil {
		return err
	}
	s.Expect("answered by", "echo-1, echo-2", names(summary))
	if err := s.logged(ctx, since, 1, "outbound shop client to shop waypoint"); err != nil {
		return err
	}
	if err := s.logged(ctx, since, 2, "inbound shop waypoint to shop echo"); err != nil {
		return err
	}
	bounded, cancel = context.WithTimeout(ctx, settle)
	defer cancel()
	var seen []string
	err = cluster.Until(bounded, "the waypoint's access log", func() (bool, error) {
		lines, err := s.WaypointAccess(since)
		seen = tunnels(lines, "inbound")
		return len(seen) > 0, err
	})
	s.Hold("access log of the waypoint", "[inbound shop client to shop echo]", fmt.Sprint(seen), err == nil && fmt.Sprint(seen) == "[inbound shop client to shop echo]")
	return nil
}

// logged expects that a node proxy's access log shows a connection of this form since a time.
func (s *stage) logged(ctx context.Context, since time.Time, node int, want string) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	direction, _, _ := strings.Cut(want, " ")
	var seen []string
	err := cluster.Until(ctx, want, func() (bool, error) {
		lines, err := s.Access(node, since)
		seen = tunnels(lines, direction)
		return slices.Contains(seen, want), err
	})
	s.Hold(fmt.Sprintf("access log of node %d", node), want, strings.Join(seen, "; "), err == nil)
	return nil
}

// answeredByPath waits until several requests for a path are answered by one pod only.
func (s *stage) answeredByPath(ctx context.Context, what, path, pod string) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	var last string
	err := cluster.Until(ctx, what, func() (bool, error) {
		summary, err := s.ask(ctx, "client-2", shopURL+path, 20)
		last = names(summary)
		return last == pod && summary.Failed == 0, err
	})
	s.Hold(what, pod, last, err == nil)
	return nil
}

// awaitStatus waits until a pod's request is answered with a status.
func (s *stage) awaitStatus(ctx context.Context, what, pod, url string, status int) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	last := "nothing"
	err := cluster.Until(ctx, what, func() (bool, error) {
		results, err := s.Request(ctx, "shop", pod, url, 1)
		if err != nil || len(results) == 0 {
			return false, err
		}
		last = fmt.Sprint(results[0].Status)
		return results[0].Status == status, nil
	})
	s.Hold(what, fmt.Sprint(status), last, err == nil)
	return nil
}
