// Command components is the unmodified programs of a cluster and of Istio in one binary: the first argument says which
// one runs, the rest is that program's own command line.
package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"istio.io/istio/pilot/cmd/pilot-discovery/app"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	serviceproxy "k8s.io/kubernetes/cmd/kube-proxy/app"

	"corelane/lab/internal/datastore"
	"corelane/lab/internal/istioctl"
	"corelane/lab/internal/nodeagent"
)

var programs = map[string]func() *cobra.Command{
	"etcd":                    datastore.Command,
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllers.NewControllerManagerCommand,
	"kube-proxy":              serviceproxy.NewProxyCommand,
	"istiod":                  app.NewRootCommand,
	"istio-cni-agent":         nodeagent.Command,
	"istioctl":                istioctl.Command,
}

func main() {
	names := make([]string, 0, len(programs))
	for name := range programs {
		names = append(names, name)
	}
	slices.Sort(names)
	if len(os.Args) < 2 || programs[os.Args[1]] == nil {
		fmt.Fprintf(os.Stderr, "components: name one of %s\n", strings.Join(names, ", "))
		os.Exit(2)
	}
	command := programs[os.Args[1]]()
	os.Args = append(os.Args[1:2], os.Args[2:]...)
	command.SetArgs(os.Args[1:])
	if err := command.Execute(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
		os.Exit(1)
	}
}
