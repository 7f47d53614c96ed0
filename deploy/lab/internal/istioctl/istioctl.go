// Package istioctl is the part of istioctl that shows the configuration of a node proxy.
package istioctl

import (
	"github.com/spf13/cobra"
	"istio.io/istio/istioctl/pkg/cli"
	"istio.io/istio/istioctl/pkg/ztunnelconfig"
)

// Command is istioctl with the subcommand ztunnel-config only.
func Command() *cobra.Command {
	root := &cobra.Command{Use: "istioctl", SilenceUsage: true}
	flags := cli.AddRootFlags(root.PersistentFlags())
	root.AddCommand(ztunnelconfig.ZtunnelConfig(cli.NewCLIContext(flags)))
	return root
}
