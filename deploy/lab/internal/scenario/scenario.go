// Package scenario is the list of what is tried on the running mesh. Each scenario says what it expects, and leaves the
// mesh as it found it: the namespace shop enrolled, no policies.
package scenario

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"corelane/lab/internal/cluster"
	"corelane/lab/internal/lab"
	"corelane/lab/internal/observe"
	"corelane/lab/internal/report"
	"corelane/lab/internal/traffic"
)

// Scenario is one thing to try.
type Scenario struct {
	Name, About string
	run         func(context.Context, *stage) error
}

// All scenarios in order.
var All = []Scenario{
	{"enrol", "a label makes the pods' traffic mTLS between their identities", enrol},
	{"leave", "without the label the traffic is plain again", leave},
	{"services", "a VIP is balanced over both nodes, every connection tunnelled", services},
	{"names", "names, headless Services, named target ports", serviceNames},
	{"passthrough", "traffic to and from what is not in the mesh", passthrough},
	{"principals", "AuthorizationPolicy by principal", principals},
	{"namespaces", "AuthorizationPolicy by namespace", namespaces},
	{"ports", "AuthorizationPolicy by port", portPolicy},
	{"revoke", "a denial ends open connections", revoke},
	{"strict", "PeerAuthentication STRICT refuses plain text", strict},
	{"readiness", "a pod that is not ready leaves the balancing", readiness},
	{"service-entries", "ServiceEntry with STATIC, DNS and NONE", serviceEntries},
	{"waypoint", "the waypoint of a Gateway: routes, policies of paths, identities", waypoint},
	{"istioctl", "istioctl ztunnel-config reads the proxy's configuration dump", istioctl},
	{"churn", "pods come and go under traffic", churn},
	{"address-reuse", "a pod comes with the address of one that has just gone", addressReuse},
	{"istiod-restart", "istiod killed and started under traffic", istiodRestart},
	{"upgrade", "proxies replaced under traffic, two at a time on a node", upgrade},
	{"rotation", "certificates renewed under traffic", rotation},
	{"crash", "a killed proxy leaves nothing in the clear and comes back", crash},
}

const (
	// limit bounds one scenario.
	limit = 4 * time.Minute
	// settle bounds how long a change of configuration may take to show, on a busy machine.
	settle = 20 * time.Second
)

// stage is what a scenario acts on.
type stage struct {
	*lab.Lab
	*report.Result
}

// Carry carries a scenario out. One that starts with the namespace not enrolled enrols it itself.
func Carry(ctx context.Context, started *lab.Lab, entry Scenario) *report.Result {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	result := &report.Result{Name: entry.Name, About: entry.About}
	began := time.Now()
	result.Err = func() error {
		if entry.Name != "enrol" {
			if err := started.Enrol(ctx); err != nil {
				return err
			}
		}
		return entry.run(ctx, &stage{started, result})
	}()
	result.Took = time.Since(began)
	return result
}

// ask lets a pod of the shop make requests and sums them up.
func (s *stage) ask(ctx context.Context, pod, url string, count int) (traffic.Summary, error) {
	namespace := "shop"
	if strings.HasPrefix(pod, "outsider") {
		namespace = "plain"
	}
	results, err := s.Request(ctx, namespace, pod, url, count)
	return traffic.Summarise(results), err
}

// succeed expects that all requests of a pod are answered.
func (s *stage) succeed(ctx context.Context, what, pod, url string, count int) (traffic.Summary, error) {
	summary, err := s.ask(ctx, pod, url, count)
	s.Hold(what, fmt.Sprintf("%d answers", count), summary.String(), err == nil && summary.Failed == 0 && summary.Count == count)
	return summary, err
}

// await repeats a pod's request until it is answered, or refused if not wanted, and records that.
func (s *stage) await(ctx context.Context, what, pod, url string, wanted bool) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	var last traffic.Summary
	began := time.Now()
	err := cluster.Until(ctx, what, func() (bool, error) {
		var err error
		last, err = s.ask(ctx, pod, url, 1)
		return (last.Failed == 0) == wanted, err
	})
	expected := "refused"
	if wanted {
		expected = "answered"
	}
	got := expected + ", after " + time.Since(began).Round(10*time.Millisecond).String()
	if err != nil {
		got = fmt.Sprintf("%s (%v)", last, err)
	}
	s.Hold(what, expected, got, err == nil)
	return nil
}

// tunnelled expects that both proxies' access logs show connections since a time with these identities.
func (s *stage) tunnelled(ctx context.Context, since time.Time, client, server int, source, destination string) error {
	for _, side := range []struct {
		node      int
		direction string
	}{{client, "outbound"}, {server, "inbound"}} {
		want := fmt.Sprintf("%s %s to %s", side.direction, source, destination)
		var seen []string
		bounded, cancel := context.WithTimeout(ctx, settle)
		err := cluster.Until(bounded, want, func() (bool, error) {
			lines, err := s.Access(side.node, since)
			seen = tunnels(lines, side.direction)
			return slices.Contains(seen, want), err
		})
		cancel()
		s.Hold(fmt.Sprintf("access log of node %d", side.node), want, strings.Join(seen, "; "), err == nil)
	}
	return nil
}

// tunnels are the different forms of connection in access log lines.
func tunnels(lines []observe.Access, direction string) []string {
	var seen []string
	for _, line := range lines {
		if line.Direction == direction && !slices.Contains(seen, line.Tunnel()) {
			seen = append(seen, line.Tunnel())
		}
	}
	return seen
}
