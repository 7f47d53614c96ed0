package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"corelane/lab/internal/cluster"
	"corelane/lab/internal/kubelet"
	"corelane/lab/internal/network"
	"corelane/lab/internal/sandbox"
)

// resolverConfiguration is what a node's pods find.
const resolverConfiguration = "nameserver " + network.DNSAddress + "\nsearch svc.cluster.local cluster.local\noptions ndots:5\n"

// RunNode is the first process of a node's sandbox: it sets the node up and runs its kubelet. text is a kubelet.Node.
func RunNode(text string) error {
	var node kubelet.Node
	if err := json.Unmarshal([]byte(text), &node); err != nil {
		return fmt.Errorf("description of the node: %w", err)
	}
	if err := sandbox.Settle(); err != nil {
		return err
	}
	// The node agent looks for a process of this name, to let its probes through.
	if err := os.WriteFile("/proc/self/comm", []byte("kubelet"), 0o644); err != nil {
		return err
	}
	root := filepath.Join(node.Dir, "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := sandbox.Root(root); err != nil {
		return err
	}
	if err := sandbox.Cover("/etc/resolv.conf", resolverConfiguration, "/run"); err != nil {
		return err
	}
	if err := network.SettleNode(node.Number, node.Nodes); err != nil {
		return err
	}
	client, err := cluster.New(node.Kubeconfig)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	pods := kubelet.New(node, client.Kube)
	failed := make(chan error, 2)
	go func() { failed <- pods.ServeExec() }()
	go func() { failed <- pods.Run(ctx) }()
	if err := kubelet.StartAgents(node); err != nil {
		return err
	}
	return <-failed
}
