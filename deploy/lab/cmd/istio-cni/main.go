// Command istio-cni is Istio's CNI plugin as it stands, run by the kubelet stand-in when a pod gets its network.
package main

import (
	"fmt"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"
	"istio.io/istio/cni/pkg/plugin"
)

func main() {
	functions := skel.CNIFuncs{Add: plugin.CmdAdd, Del: plugin.CmdDelete, Check: plugin.CmdCheck}
	if err := skel.PluginMainFuncsWithError(functions, version.All, "istio-cni"); err != nil {
		fmt.Fprintln(os.Stderr, err.Print())
		os.Exit(1)
	}
}
