package scenario

import (
	"context"
	"fmt"

	"corelane/lab/internal/network"
)

// entry is a ServiceEntry for the server outside of the cluster.
func entry(name, resolution, rest string) []byte {
	return fmt.Appendf(nil, `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %s, namespace: shop}
spec:
  hosts: [%s.example]
  location: MESH_EXTERNAL
  resolution: %s
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8090}]
%s`, name, name, resolution, rest)
}

func serviceEntries(ctx context.Context, s *stage) error {
	entries := []struct {
		what, url string
		object    []byte
	}{
		{"STATIC, by its name", "http://static.example/",
			entry("static", "STATIC", fmt.Sprintf("  endpoints: [{address: %s}]", network.OutsideAddress))},
		{"DNS, by its name", "http://dynamic.example/",
			entry("dynamic", "DNS", "  endpoints: [{address: outside.example}]")},
		{"NONE, by its address", "http://" + network.OutsideAddress + ":8090/",
			entry("none", "NONE", fmt.Sprintf("  addresses: [%s]", network.OutsideAddress))},
	}
	for _, each := range entries {
		if err := s.Apply(ctx, each.object); err != nil {
			return err
		}
		if err := s.await(ctx, each.what, "client-1", each.url, true); err != nil {
			return err
		}
		summary, err := s.ask(ctx, "client-1", each.url, 10)
		if err != nil {
			return err
		}
		s.Expect("answered by", "outside", names(summary))
		if err := s.Delete(ctx, each.object); err != nil {
			return err
		}
	}
	return nil
}

func passthrough(ctx context.Context, s *stage) error {
	if _, err := s.succeed(ctx, "to an address that nobody knows", "client-1",
		"http://"+network.OutsideAddress+":8090/", 10); err != nil {
		return err
	}
	pod, err := s.Pod(ctx, "plain", "outsider-1")
	if err != nil {
		return err
	}
	if _, err := s.succeed(ctx, "to a pod outside of the mesh", "client-2",
		fmt.Sprintf("http://%s:8080/", pod.Status.PodIP), 10); err != nil {
		return err
	}
	_, err = s.succeed(ctx, "from a pod outside of the mesh", "outsider-1", serviceURL, 20)
	return err
}
