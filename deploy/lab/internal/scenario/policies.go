package scenario

import (
	"context"
	"fmt"
	"time"

	"corelane/lab/internal/cluster"
)

const echoURL = "http://echo-1.shop.svc.cluster.local/"

// policy is an AuthorizationPolicy for the servers, with the rest of its spec.
func policy(name, spec string) []byte {
	return fmt.Appendf(nil, `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: %s, namespace: shop}
spec:
  selector: {matchLabels: {app: echo}}
%s`, name, spec)
}

func principals(ctx context.Context, s *stage) error {
	allow := policy("only-client", `  action: ALLOW
  rules: [{from: [{source: {principals: ["cluster.local/ns/shop/sa/client"]}}]}]`)
	return s.under(ctx, allow, func() error {
		if err := s.await(ctx, "another principal", "guest-1", echoURL, false); err != nil {
			return err
		}
		if _, err := s.succeed(ctx, "the principal", "client-1", echoURL, 20); err != nil {
			return err
		}
		if _, err := s.succeed(ctx, "the principal, from the other node", "client-2", echoURL, 20); err != nil {
			return err
		}
		return s.await(ctx, "no principal at all", "outsider-1", echoURL, false)
	}, "guest-1")
}

func namespaces(ctx context.Context, s *stage) error {
	allow := policy("only-shop", `  action: ALLOW
  rules: [{from: [{source: {namespaces: ["shop"]}}]}]`)
	return s.under(ctx, allow, func() error {
		if err := s.await(ctx, "from outside of the mesh", "outsider-1", echoURL, false); err != nil {
			return err
		}
		_, err := s.succeed(ctx, "from the namespace", "guest-1", echoURL, 20)
		return err
	}, "outsider-1")
}

func portPolicy(ctx context.Context, s *stage) error {
	pod, err := s.Pod(ctx, "shop", "echo-1")
	if err != nil {
		return err
	}
	deny := policy("no-8080", `  action: DENY
  rules: [{to: [{operation: {ports: ["8080"]}}]}]`)
	return s.under(ctx, deny, func() error {
		if err := s.await(ctx, "the denied port, by VIP", "client-2", echoURL, false); err != nil {
			return err
		}
		_, err := s.succeed(ctx, "another port", "client-2", fmt.Sprintf("http://%s:8081/", pod.Status.PodIP), 20)
		return err
	}, "client-2")
}

func revoke(ctx context.Context, s *stage) error {
	client, err := s.StartClient(ctx, "held", 1, "workload", "hold", "echo.shop.svc.cluster.local:90")
	if err != nil {
		return err
	}
	deny := policy("nobody", `  action: DENY
  rules: [{from: [{source: {principals: ["*"]}}]}]`)
	began := time.Now()
	if err := s.Apply(ctx, deny); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	err = cluster.Until(bounded, "end of the open connection", func() (bool, error) {
		results, err := client.Results(began)
		return len(results) > 0 && results[len(results)-1].Error != "", err
	})
	took := time.Since(began).Round(10 * time.Millisecond)
	s.Hold("a connection open when a denial comes", "ended within 5 s", fmt.Sprintf("ended: %t, after %s", err == nil, took),
		err == nil && took < 5*time.Second)
	if err := s.Delete(ctx, deny); err != nil {
		return err
	}
	if _, err := client.Stop(ctx); err != nil {
		return err
	}
	return s.await(ctx, "after the denial is gone", "client-1", echoURL, true)
}

func strict(ctx context.Context, s *stage) error {
	if err := s.await(ctx, "before, from outside of the mesh", "outsider-1", echoURL, true); err != nil {
		return err
	}
	text := []byte(`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}`)
	return s.under(ctx, text, func() error {
		if err := s.await(ctx, "from outside of the mesh", "outsider-1", echoURL, false); err != nil {
			return err
		}
		if _, err := s.succeed(ctx, "within the mesh", "client-2", echoURL, 20); err != nil {
			return err
		}
		// Longer than several probes and the time in which a failed one shows.
		time.Sleep(3 * time.Second)
		pod, err := s.Pod(ctx, "shop", "echo-1")
		if err != nil {
			return err
		}
		s.Expect("the node's readiness probe, in the clear", "ready", map[bool]string{true: "ready", false: "not ready"}[cluster.IsReady(pod)])
		return nil
	}, "outsider-1")
}

// under carries out a part of a scenario with an object applied, then deletes it and waits until who was refused under
// it is served again.
func (s *stage) under(ctx context.Context, object []byte, part func() error, refused string) error {
	if err := s.Apply(ctx, object); err != nil {
		return err
	}
	err := part()
	if deleted := s.Delete(ctx, object); deleted != nil {
		return deleted
	}
	if err != nil {
		return err
	}
	return s.await(ctx, "after it is gone", refused, echoURL, true)
}
