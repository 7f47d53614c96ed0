// Package nodeagent is Istio's own node agent (istio-cni), without its installer: it enrols pods by label, puts the
// redirection into their namespaces and speaks ZDS with the node proxy.
package nodeagent

import (
	"context"
	"fmt"
	"os/signal"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"
	"istio.io/istio/cni/pkg/nodeagent"
	"istio.io/istio/cni/pkg/util"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const modeLabel = "istio.io/dataplane-mode"

// Command runs the agent of the node named by NODE_NAME until it is told to stop.
func Command() *cobra.Command {
	var pluginSocket string
	arguments := nodeagent.AmbientArgs{
		SystemNamespace: nodeagent.SystemNamespace,
		NativeNftables:  true,
		DNSCapture:      true,
	}
	command := &cobra.Command{
		Use:          "istio-cni-agent",
		SilenceUsage: true,
		RunE: func(*cobra.Command, []string) error {
			return run(pluginSocket, arguments)
		},
	}
	command.Flags().StringVar(&arguments.KubeConfig, "kubeconfig", "", "how to reach the API server")
	command.Flags().StringVar(&arguments.ServerSocket, "zds-socket", "", "where the node proxy connects")
	command.Flags().StringVar(&pluginSocket, "plugin-socket", "", "where the CNI plugin reports new pods")
	return command
}

func run(pluginSocket string, arguments nodeagent.AmbientArgs) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	selectors, err := util.NewCompiledEnablementSelectors(selectors())
	if err != nil {
		return fmt.Errorf("selectors: %w", err)
	}
	arguments.EnablementSelector = selectors
	ready := &atomic.Value{}
	agent, err := nodeagent.NewServer(ctx, ready, pluginSocket, arguments)
	if err != nil {
		return err
	}
	agent.Start()
	<-ctx.Done()
	// As in an upgrade: the pods stay enrolled.
	agent.Stop(true)
	return nil
}

// selectors are those of Istio's chart: the label of the pod, else the label of its namespace.
func selectors() []util.EnablementSelector {
	ambient := map[string]string{modeLabel: "ambient"}
	notOut := []metav1.LabelSelectorRequirement{
		{Key: modeLabel, Operator: metav1.LabelSelectorOpNotIn, Values: []string{"none"}},
	}
	return []util.EnablementSelector{
		{PodSelector: metav1.LabelSelector{MatchLabels: ambient}},
		{
			PodSelector:       metav1.LabelSelector{MatchExpressions: notOut},
			NamespaceSelector: metav1.LabelSelector{MatchLabels: ambient},
		},
	}
}
