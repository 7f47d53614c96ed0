package scenario

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"corelane/lab/internal/cluster"
	"corelane/lab/internal/traffic"
)

func services(ctx context.Context, s *stage) error {
	service, err := s.Kube.CoreV1().Services("shop").Get(ctx, "echo", metav1.GetOptions{})
	if err != nil {
		return err
	}
	since := time.Now()
	summary, err := s.succeed(ctx, "VIP", "client-1", "http://"+service.Spec.ClusterIP+"/", 60)
	if err != nil {
		return err
	}
	s.Expect("answered by", "echo-1, echo-2", names(summary))
	if err := s.tunnelled(ctx, since, 1, 2, "shop client", "shop echo"); err != nil {
		return err
	}
	return s.tunnelled(ctx, since, 1, 1, "shop client", "shop echo")
}

func serviceNames(ctx context.Context, s *stage) error {
	summary, err := s.succeed(ctx, "name of a Service", "client-1", "http://echo.shop.svc.cluster.local/", 40)
	if err != nil {
		return err
	}
	s.Expect("answered by", "echo-1, echo-2", names(summary))
	summary, err = s.succeed(ctx, "one instance, on the client's node", "client-1", "http://echo-1.shop.svc.cluster.local/", 10)
	if err != nil {
		return err
	}
	s.Expect("answered by", "echo-1", names(summary))
	summary, err = s.succeed(ctx, "headless Service", "client-1", "http://echo-headless.shop.svc.cluster.local:8080/", 40)
	if err != nil {
		return err
	}
	s.Expect("answered by", "echo-1, echo-2", names(summary))
	results, err := s.Request(ctx, "shop", "client-1", "http://echo-named.shop.svc.cluster.local:7000/", 40)
	if err != nil {
		return err
	}
	s.Expect("named target port is each pod's own", "echo-1:8081, echo-2:8082", ports(results))
	return nil
}

func readiness(ctx context.Context, s *stage) error {
	if err := s.setReady(ctx, "echo-2", false); err != nil {
		return err
	}
	if err := s.answeredBy(ctx, "echo-2 is not ready", "echo-1"); err != nil {
		return err
	}
	summary, err := s.succeed(ctx, "meanwhile", "client-1", "http://echo.shop.svc.cluster.local/", 40)
	if err != nil {
		return err
	}
	s.Expect("answered by", "echo-1", names(summary))
	if err := s.setReady(ctx, "echo-2", true); err != nil {
		return err
	}
	return s.answeredBy(ctx, "echo-2 is ready again", "echo-1, echo-2")
}

// setReady lets a server answer its readiness probe so, and waits until the API shows it.
func (s *stage) setReady(ctx context.Context, pod string, ready bool) error {
	url := fmt.Sprintf("http://127.0.0.1:8080/set-ready?value=%t", ready)
	outcome, err := s.Exec(ctx, "shop", pod, "workload", "request", url)
	if err != nil || outcome.Code != 0 {
		return fmt.Errorf("%s: %s %w", url, outcome.Stderr, err)
	}
	return cluster.Until(ctx, fmt.Sprintf("readiness %t of %s", ready, pod), func() (bool, error) {
		object, err := s.Pod(ctx, "shop", pod)
		return err == nil && cluster.IsReady(object) == ready, err
	})
}

// answeredBy waits until the requests to the Service echo are answered by just these pods, and records how long it took.
func (s *stage) answeredBy(ctx context.Context, what, pods string) error {
	began := time.Now()
	bounded, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	var last string
	err := cluster.Until(bounded, what, func() (bool, error) {
		summary, err := s.ask(bounded, "client-1", "http://echo.shop.svc.cluster.local/", 20)
		last = names(summary)
		return last == pods && summary.Failed == 0, err
	})
	s.Hold(what, pods, fmt.Sprintf("%s after %s", last, time.Since(began).Round(10*time.Millisecond)), err == nil)
	return nil
}

// names lists the pods that answered.
func names(summary traffic.Summary) string {
	return strings.Join(slices.Sorted(maps.Keys(summary.Pods)), ", ")
}

// ports lists the pods that answered with the port each was reached at, or says what failed.
func ports(results []traffic.Result) string {
	if summary := traffic.Summarise(results); summary.Failed > 0 {
		return summary.String()
	}
	seen := map[string]bool{}
	for _, result := range results {
		seen[result.Answer.Pod+":"+result.Answer.Port] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(seen)), ", ")
}
