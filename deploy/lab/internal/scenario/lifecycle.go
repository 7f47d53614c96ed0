package scenario

import (
	"context"
	"errors"
	"fmt"
	"time"

	"corelane/lab/internal/cluster"
	"corelane/lab/internal/lab"
	"corelane/lab/manifests"
)

const (
	serviceURL = "http://echo.shop.svc.cluster.local/"
	// loadInterval is the time between two requests of a load.
	loadInterval = "25ms"
	// churnRounds times churnPods is how many pods come and go.
	churnRounds, churnPods = 5, 6
	// shortLifetime makes certificates that are renewed after about ten seconds: istiod dates them two minutes back and
	// they are renewed at half of their life.
	shortLifetime = "140s"
)

// load starts steady traffic from node 1 to both servers.
func (s *stage) load(ctx context.Context, name string) (*lab.Client, error) {
	return s.StartClient(ctx, name, 1, "workload", "load", "-interval", loadInterval, serviceURL)
}

// lossless ends a load and expects that every request of it was answered.
func (s *stage) lossless(ctx context.Context, client *lab.Client) error {
	summary, err := client.Stop(ctx)
	if err != nil {
		return err
	}
	s.Hold("requests meanwhile", "none lost", summary.String(), summary.Failed == 0 && summary.Count > 0)
	return nil
}

// server is the manifest of one more server; address is the index of the wanted one, or empty.
func server(name, app string, node int, address string) ([]byte, error) {
	return manifests.Fill("server.yaml", map[string]any{
		"Name": name, "App": app, "Node": lab.NodeName(node), "Address": address,
	})
}

func churn(ctx context.Context, s *stage) error {
	client, err := s.load(ctx, "load-churn")
	if err != nil {
		return err
	}
	began := time.Now()
	for round := range churnRounds {
		var pods []byte
		for index := range churnPods {
			text, err := server(fmt.Sprintf("churn-%d-%d", round, index), "echo", index%lab.Nodes+1, "")
			if err != nil {
				return err
			}
			pods = append(pods, text...)
		}
		if err := s.Apply(ctx, pods); err != nil {
			return err
		}
		if err := s.AwaitReady(ctx, "shop", true); err != nil {
			return err
		}
		if err := s.Delete(ctx, pods); err != nil {
			return err
		}
	}
	s.Hold("pods made and deleted", fmt.Sprint(churnRounds*churnPods),
		fmt.Sprintf("%d in %s", churnRounds*churnPods, time.Since(began).Round(time.Second)), true)
	if err := s.lossless(ctx, client); err != nil {
		return err
	}
	for node := 1; node <= lab.Nodes; node++ {
		if err := s.forgotten(ctx, node); err != nil {
			return err
		}
	}
	return nil
}

// forgotten expects that a proxy keeps nothing of the pods that are gone.
func (s *stage) forgotten(ctx context.Context, node int) error {
	bounded, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	left := 0
	err := cluster.Until(bounded, "forgetting", func() (bool, error) {
		dump, err := s.Dump(bounded, node)
		if err != nil {
			return false, err
		}
		left = 0
		for _, workload := range dump.Workloads {
			if len(workload.Name) > 6 && workload.Name[:6] == "churn-" {
				left++
			}
		}
		return left == 0, nil
	})
	s.Hold(fmt.Sprintf("workloads of deleted pods at node %d", node), "0", fmt.Sprint(left), err == nil)
	return nil
}

// addressReuse lets a pod come back with the address of one that has just gone, so that nobody has noticed yet.
func addressReuse(ctx context.Context, s *stage) error {
	const index = "200"
	for _, round := range []string{"first", "second", "third"} {
		text, err := server("reused-"+round, "reused", 2, index)
		if err != nil {
			return err
		}
		if err := s.Apply(ctx, text); err != nil {
			return err
		}
		if err := s.AwaitReady(ctx, "shop", true); err != nil {
			return err
		}
		pod, err := s.Pod(ctx, "shop", "reused-"+round)
		if err != nil {
			return err
		}
		url := fmt.Sprintf("http://%s:8080/", pod.Status.PodIP)
		summary, err := s.succeed(ctx, "the "+round+" pod at "+pod.Status.PodIP, "client-1", url, 20)
		if err != nil {
			return err
		}
		s.Expect("answered by", pod.Name, names(summary))
		if err := s.Delete(ctx, text); err != nil {
			return err
		}
	}
	return nil
}

func rotation(ctx context.Context, s *stage) error {
	short := map[string]string{"SECRET_TTL": shortLifetime}
	for node := 1; node <= lab.Nodes; node++ {
		if err := s.ReplaceProxy(ctx, node, short); err != nil {
			return err
		}
	}
	client, err := s.load(ctx, "load-rotation")
	if err != nil {
		return err
	}
	held, err := s.StartClient(ctx, "held-rotation", 1, "workload", "hold", "echo.shop.svc.cluster.local:90")
	if err != nil {
		return err
	}
	for _, side := range []struct {
		node     int
		identity string
	}{{1, "spiffe://cluster.local/ns/shop/sa/client"}, {2, "spiffe://cluster.local/ns/shop/sa/echo"}} {
		if err := s.renewed(ctx, side.node, side.identity); err != nil {
			return err
		}
	}
	if err := s.lossless(ctx, client); err != nil {
		return err
	}
	summary, err := held.Stop(ctx)
	if err != nil {
		return err
	}
	s.Hold("a connection across the renewal", "stays", summary.String(), summary.Failed == 0)
	for node := 1; node <= lab.Nodes; node++ {
		if err := s.ReplaceProxy(ctx, node, nil); err != nil {
			return err
		}
	}
	return nil
}

// renewed waits until an identity's certificate at a node has changed twice.
func (s *stage) renewed(ctx context.Context, node int, identity string) error {
	began := time.Now()
	bounded, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	serials := map[string]bool{}
	err := cluster.Until(bounded, "renewal of "+identity, func() (bool, error) {
		dump, err := s.Dump(bounded, node)
		if err != nil {
			return false, err
		}
		if serial := dump.Serial(identity); serial != "" {
			serials[serial] = true
		}
		return len(serials) >= 3, nil
	})
	s.Hold(fmt.Sprintf("certificates of %s at node %d", identity, node), "3 different",
		fmt.Sprintf("%d different in %s", len(serials), time.Since(began).Round(time.Second)), err == nil)
	return nil
}

func istiodRestart(ctx context.Context, s *stage) error {
	client, err := s.load(ctx, "load-istiod")
	if err != nil {
		return err
	}
	s.Plane.StopIstiod(true)
	// Long enough for several attempts to reconnect.
	time.Sleep(5 * time.Second)
	if err := s.Plane.StartIstiod(ctx); err != nil {
		return err
	}
	text, err := server("late", "echo", 2, "")
	if err != nil {
		return err
	}
	if err := s.Apply(ctx, text); err != nil {
		return err
	}
	if err := s.AwaitReady(ctx, "shop", true); err != nil {
		return err
	}
	if err := s.answeredBy(ctx, "a pod made after the restart serves", "echo-1, echo-2, late"); err != nil {
		return err
	}
	if err := s.Delete(ctx, text); err != nil {
		return err
	}
	if err := s.answeredBy(ctx, "and leaves", "echo-1, echo-2"); err != nil {
		return err
	}
	return s.lossless(ctx, client)
}

func upgrade(ctx context.Context, s *stage) error {
	client, err := s.load(ctx, "load-upgrade")
	if err != nil {
		return err
	}
	for node := 1; node <= lab.Nodes; node++ {
		began := time.Now()
		if err := s.ReplaceProxy(ctx, node, nil); err != nil {
			return err
		}
		s.Hold(fmt.Sprintf("proxy of node %d replaced", node), "new one ready before the old one ends",
			"in "+time.Since(began).Round(10*time.Millisecond).String(), true)
	}
	return s.lossless(ctx, client)
}

func crash(ctx context.Context, s *stage) error {
	pod, err := s.Pod(ctx, "shop", "echo-2")
	if err != nil {
		return err
	}
	if err := s.KillProxy(ctx, 2); err != nil {
		return err
	}
	killed := time.Now()
	seen, captured := s.capture(ctx, fmt.Sprintf("http://%s:8080/%s", pod.Status.PodIP, marker))
	if captured != nil {
		return captured
	}
	s.Expect("readable segments while it is down", "0", fmt.Sprint(seen.Readable))
	if err := s.AwaitProxy(ctx, 2); err != nil {
		return errors.Join(errors.New("the proxy did not come back"), err)
	}
	s.Hold("the proxy is ready again", "within 30 s", time.Since(killed).Round(100*time.Millisecond).String(),
		time.Since(killed) < 30*time.Second)
	if err := s.await(ctx, "then", "client-1", serviceURL, true); err != nil {
		return err
	}
	_, err = s.succeed(ctx, "and on", "client-1", serviceURL, 40)
	return err
}
