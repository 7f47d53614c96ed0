// Package lab brings the whole cluster up in a sandbox and gives the scenarios their hands: objects, commands in pods,
// loads, logs.
package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"corelane/lab/internal/cluster"
	"corelane/lab/internal/controlplane"
	"corelane/lab/internal/kubelet"
	"corelane/lab/internal/nameserver"
	"corelane/lab/internal/network"
	"corelane/lab/internal/process"
	"corelane/lab/internal/sandbox"
	"corelane/lab/manifests"
)

// Nodes is how many nodes the cluster has.
const Nodes = 2

// startLimit bounds the start of the whole cluster on a busy machine.
const startLimit = 4 * time.Minute

// Options says where things are.
type Options struct {
	// Run names the run; Dir is its folder.
	Run string `json:"run"`
	Dir string `json:"dir"`
	// Bin holds corelane and the lab's programs.
	Bin string `json:"bin"`
	// Definitions are files and folders of custom resource definitions.
	Definitions []string `json:"definitions"`
	// ProxyLog is the proxies' log filter.
	ProxyLog string `json:"proxyLog"`
}

// Lab is a running cluster.
type Lab struct {
	*cluster.Client
	Plane   *controlplane.ControlPlane
	options Options
	nodes   []*exec.Cmd
	// generation counts the proxies of each node.
	generation map[int]int
}

// NodeName is the name of the node with this number, from 1.
func NodeName(number int) string { return fmt.Sprintf("node-%d", number) }

// Start brings everything up but the application. It must be called on the main thread of a sandbox's first process.
func Start(ctx context.Context, options Options) (*Lab, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	lab := &Lab{options: options, generation: map[int]int{}}
	if err := network.MakeFabric(Nodes); err != nil {
		return nil, err
	}
	began := time.Now()
	var err error
	lab.Plane, err = controlplane.Start(ctx, lab.bin("components"), filepath.Join(options.Dir, "plane"))
	if err != nil {
		return nil, err
	}
	if lab.Client, err = cluster.New(lab.Plane.Kubeconfig); err != nil {
		return nil, err
	}
	slog.Info("the API is served", "after", time.Since(began).Round(time.Millisecond))
	steps := []func(context.Context) error{
		lab.define, lab.startOutside, lab.Plane.StartIstiod, lab.startNodes, lab.startProxies,
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	slog.Info("the mesh is up", "after", time.Since(began).Round(time.Millisecond))
	return lab, nil
}

// define applies custom resource definitions and what Istio's charts bring.
func (l *Lab) define(ctx context.Context) error {
	for _, path := range l.options.Definitions {
		text, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("custom resource definitions: %w", err)
		}
		if err := l.Apply(ctx, text); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	if err := l.AwaitEstablished(ctx); err != nil {
		return err
	}
	text, err := manifests.Read("istio.yaml")
	if err != nil {
		return err
	}
	return l.Apply(ctx, text)
}

// startOutside starts what is outside of the nodes: the name server, and a server that is not in the cluster.
func (l *Lab) startOutside(context.Context) error {
	names := &nameserver.Server{Kube: l.Kube, Outside: map[string]string{"outside.example.": network.OutsideAddress}}
	if err := names.Start(network.FabricAddress + ":53"); err != nil {
		return fmt.Errorf("name server: %w", err)
	}
	_, err := process.Start(process.Spec{
		Name: "outside", Command: []string{l.bin("workload"), "serve", "-http", "8090"}, Dir: l.options.Dir,
		Env: []string{"POD_NAME=outside"}, Log: filepath.Join(l.logs(), "outside.log"),
	})
	return err
}

func (l *Lab) startNodes(context.Context) error {
	for number := 1; number <= Nodes; number++ {
		node := kubelet.Node{
			Run: l.options.Run, Name: NodeName(number), Number: number, Nodes: Nodes,
			Dir: l.nodeDir(number), Logs: l.logs(),
			Kubeconfig: l.Plane.Kubeconfig, Components: l.bin("components"), Plugin: l.bin("istio-cni"),
		}
		if err := os.MkdirAll(node.Dir, 0o755); err != nil {
			return err
		}
		text, err := json.Marshal(node)
		if err != nil {
			return err
		}
		command := sandbox.Command("kubelet", string(text))
		log, err := os.Create(filepath.Join(l.logs(), node.Name+"_kubelet.log"))
		if err != nil {
			return err
		}
		command.Stdout, command.Stderr = log, log
		if err := command.Start(); err != nil {
			return fmt.Errorf("%s: %w", node.Name, err)
		}
		l.nodes = append(l.nodes, command)
		if err := network.JoinNode(number, command.Process.Pid); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) startProxies(ctx context.Context) error {
	for number := 1; number <= Nodes; number++ {
		if err := l.StartProxy(ctx, number, nil); err != nil {
			return err
		}
	}
	return l.AwaitReady(ctx, "istio-system", false)
}

func (l *Lab) bin(name string) string { return filepath.Join(l.options.Bin, name) }

func (l *Lab) logs() string { return filepath.Join(l.options.Dir, "logs") }

func (l *Lab) nodeDir(number int) string { return filepath.Join(l.options.Dir, NodeName(number)) }
