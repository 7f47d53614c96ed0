package scenario

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"corelane/lab/internal/traffic"
)

// marker is in every request of the capture and must not be readable on the link of pods of the mesh.
const marker = "marker-of-the-lab"

func enrol(ctx context.Context, s *stage) error {
	pod, err := s.Pod(ctx, "shop", "echo-2")
	if err != nil {
		return err
	}
	url := fmt.Sprintf("http://%s:8080/%s", pod.Status.PodIP, marker)
	before, err := s.capture(ctx, url)
	if err != nil {
		return err
	}
	s.Hold("before, bytes on the fabric", "readable", fmt.Sprintf("%d readable segments", before.Readable), before.Readable > 0)
	if err := s.Enrol(ctx); err != nil {
		return err
	}
	since := time.Now()
	after, err := s.capture(ctx, url)
	if err != nil {
		return err
	}
	s.Hold("after, bytes on the fabric", "not readable, port 15008 only",
		fmt.Sprintf("%d readable segments, %d on 15008, %d on 8080", after.Readable, after.Ports[15008], after.Ports[8080]),
		after.Readable == 0 && after.Ports[15008] > 0 && after.Ports[8080] == 0)
	if _, err := s.succeed(ctx, "requests to the other node", "client-1", url, 20); err != nil {
		return err
	}
	if err := s.tunnelled(ctx, since, 1, 2, "shop client", "shop echo"); err != nil {
		return err
	}
	page, err := s.ProxyPage(ctx, 2, "http://127.0.0.1:15020/metrics")
	if err != nil {
		return err
	}
	count := connections(page, "destination", "mutual_tls", "shop/sa/client")
	s.Hold("metric of node 2", "at least 20 mutual_tls connections", fmt.Sprintf("%.0f", count), count >= 20)
	return nil
}

func leave(ctx context.Context, s *stage) error {
	if err := s.Leave(ctx); err != nil {
		return err
	}
	since := time.Now()
	pod, err := s.Pod(ctx, "shop", "echo-2")
	if err != nil {
		return err
	}
	seen, err := s.capture(ctx, fmt.Sprintf("http://%s:8080/%s", pod.Status.PodIP, marker))
	if err != nil {
		return err
	}
	s.Hold("bytes on the fabric", "readable, none on 15008",
		fmt.Sprintf("%d readable segments, %d on 15008", seen.Readable, seen.Ports[15008]),
		seen.Readable > 0 && seen.Ports[15008] == 0)
	lines, err := s.Access(2, since)
	if err != nil {
		return err
	}
	s.Expect("connections through the proxy of node 2", "0", fmt.Sprint(len(tunnels(lines, "inbound"))))
	return s.Enrol(ctx)
}

// capture listens on node 2's end of the fabric while client-1 makes requests.
func (s *stage) capture(ctx context.Context, url string) (*traffic.Capture, error) {
	type outcome struct {
		capture *traffic.Capture
		err     error
	}
	done := make(chan outcome, 1)
	go func() {
		said, err := s.ExecNode(ctx, 2, "workload", "capture", "-for", "3s", "-marker", marker, "eth0")
		if err == nil && said.Code != 0 {
			err = fmt.Errorf("capture: %s", said.Stderr)
		}
		capture := &traffic.Capture{}
		if err == nil {
			err = json.Unmarshal([]byte(said.Stdout), capture)
		}
		done <- outcome{capture, err}
	}()
	// Requests go on for as long as it listens, so no start can be missed.
	for {
		select {
		case result := <-done:
			return result.capture, result.err
		default:
		}
		if _, err := s.ask(ctx, "client-1", url, 5); err != nil {
			return nil, err
		}
	}
}
