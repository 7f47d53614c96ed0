package lab

import (
	"context"
	"fmt"
	"slices"
	"time"

	"corelane/lab/internal/cluster"
	"corelane/lab/internal/kubelet"
	"corelane/lab/internal/traffic"
	"corelane/lab/manifests"
)

// Exec runs a command in a pod.
func (l *Lab) Exec(ctx context.Context, namespace, pod string, command ...string) (kubelet.Outcome, error) {
	object, err := l.Pod(ctx, namespace, pod)
	if err != nil {
		return kubelet.Outcome{}, err
	}
	for number := 1; number <= Nodes; number++ {
		if NodeName(number) == object.Spec.NodeName {
			order := kubelet.Order{Namespace: namespace, Pod: pod, Command: command}
			return kubelet.Exec(ctx, l.nodeDir(number), order)
		}
	}
	return kubelet.Outcome{}, fmt.Errorf("pod %s/%s is on no node", namespace, pod)
}

// ExecNode runs a command on a node.
func (l *Lab) ExecNode(ctx context.Context, node int, command ...string) (kubelet.Outcome, error) {
	return kubelet.Exec(ctx, l.nodeDir(node), kubelet.Order{Command: command})
}

// Request lets a pod make requests, one after the other, each on a connection of its own.
func (l *Lab) Request(ctx context.Context, namespace, pod, url string, count int) ([]traffic.Result, error) {
	outcome, err := l.Exec(ctx, namespace, pod, "workload", "request",
		"-n", fmt.Sprint(count), "-nameserver", "10.96.0.10:53", url)
	if err != nil {
		return nil, err
	}
	if outcome.Code != 0 {
		return nil, fmt.Errorf("requests of %s/%s: %s", namespace, pod, outcome.Stderr)
	}
	return traffic.Parse([]byte(outcome.Stdout)), nil
}

// Client is a pod that makes requests until it is stopped.
type Client struct {
	lab        *Lab
	name, path string
	began      time.Time
}

// StartClient starts a client pod in the namespace shop: command is what it runs.
func (l *Lab) StartClient(ctx context.Context, name string, node int, command ...string) (*Client, error) {
	text, err := manifests.Fill("load.yaml", map[string]any{"Name": name, "Node": NodeName(node), "Command": command})
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := l.Apply(ctx, text); err != nil {
		return nil, err
	}
	client := &Client{lab: l, name: name, path: kubelet.LogFile(l.logs(), "shop", name), began: began}
	if err := l.AwaitPod(ctx, "shop", name, "gets ready", cluster.IsReady); err != nil {
		return nil, err
	}
	return client, cluster.Until(ctx, "the first request of "+name, func() (bool, error) {
		results, err := client.Results(began)
		return slices.ContainsFunc(results, func(result traffic.Result) bool { return result.Error == "" }), err
	})
}

// Results are the requests that began at or after a time.
func (c *Client) Results(since time.Time) ([]traffic.Result, error) {
	return traffic.ReadSince(c.path, since)
}

// Stop ends the client and sums up everything since its start.
func (c *Client) Stop(ctx context.Context) (traffic.Summary, error) {
	if err := c.lab.DeletePod(ctx, "shop", c.name, -1); err != nil {
		return traffic.Summary{}, err
	}
	results, err := c.Results(c.began)
	return traffic.Summarise(results), err
}
