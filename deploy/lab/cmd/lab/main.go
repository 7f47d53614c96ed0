// Command lab runs `corelane proxy` under a real API server and an unmodified Istio on this machine, sends real traffic
// and reports what held. It needs root, for the namespaces it puts everything into.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"corelane/lab/internal/lab"
	"corelane/lab/internal/report"
	"corelane/lab/internal/sandbox"
	"corelane/lab/internal/scenario"
)

// runLimit bounds a whole run; --keep lifts it.
const runLimit = 45 * time.Minute

// order is what the outer process tells the one in the sandbox.
type order struct {
	Options lab.Options `json:"options"`
	Only    []string    `json:"only"`
	Keep    bool        `json:"keep"`
}

func main() {
	// Namespaces are made by the main thread, which lives as long as the process.
	runtime.LockOSThread()
	code, err := dispatch(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "lab: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

func dispatch(arguments []string) (int, error) {
	switch {
	case len(arguments) == 2 && arguments[0] == "inside":
		return inside(arguments[1])
	case len(arguments) == 2 && arguments[0] == "kubelet":
		return 1, lab.RunNode(arguments[1])
	}
	return outside(arguments)
}

// outside makes the run's folder and sandbox, and cleans up after it.
func outside(arguments []string) (int, error) {
	flags := flag.NewFlagSet("lab", flag.ExitOnError)
	bin := flags.String("bin", "", "folder of corelane, components, istio-cni and workload")
	definitions := flags.String("definitions", "", "files of custom resource definitions, comma-separated")
	only := flags.String("only", "", "scenarios to run, comma-separated; all if empty")
	keep := flags.Bool("keep", false, "keep everything running after the scenarios, until Ctrl-C")
	list := flags.Bool("list", false, "list the scenarios and end")
	proxyLog := flags.String("proxy-log", "info", "log filter of the proxies")
	if err := flags.Parse(arguments); err != nil {
		return 2, err
	}
	if *list {
		for _, entry := range scenario.All {
			fmt.Printf("%-20s %s\n", entry.Name, entry.About)
		}
		return 0, nil
	}
	if os.Geteuid() != 0 {
		return 1, errors.New("root is needed, for network, process and mount namespaces: run it with sudo")
	}
	dir, err := os.MkdirTemp("", "corelane-lab-")
	if err != nil {
		return 1, err
	}
	whole := order{Keep: *keep, Only: split(*only), Options: lab.Options{
		Run: filepath.Base(dir), Dir: dir, Bin: *bin, Definitions: split(*definitions), ProxyLog: *proxyLog,
	}}
	text, err := json.Marshal(whole)
	if err != nil {
		return 1, err
	}
	code, err := sandbox.Run(sandbox.Command("inside", string(text)))
	return code, errors.Join(err, cleanUp(whole.Options, code == 0 && err == nil))
}

// cleanUp removes what is not bound to a process: cgroups, and the folder unless its logs may be wanted.
func cleanUp(options lab.Options, passed bool) error {
	err := sandbox.RemoveCgroups(options.Run)
	if passed {
		return errors.Join(err, os.RemoveAll(options.Dir))
	}
	fmt.Fprintf(os.Stderr, "logs are kept in %s\n", filepath.Join(options.Dir, "logs"))
	return err
}

// inside is the first process of the sandbox.
func inside(text string) (int, error) {
	var given order
	if err := json.Unmarshal([]byte(text), &given); err != nil {
		return 1, err
	}
	if err := os.Setenv("PATH", given.Options.Bin+":"+os.Getenv("PATH")); err != nil {
		return 1, err
	}
	if err := os.MkdirAll(filepath.Join(given.Options.Dir, "logs"), 0o755); err != nil {
		return 1, err
	}
	pid := outerPid()
	if err := sandbox.Settle(); err != nil {
		return 1, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	limited, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	started, err := lab.Start(limited, given.Options)
	if err != nil {
		return 1, err
	}
	passed := runScenarios(limited, started, given.Only)
	if given.Keep && ctx.Err() == nil {
		fmt.Printf("\nkept running, Ctrl-C ends it; a shell in it:\n  nsenter -t %d -m -n -p env KUBECONFIG=%s bash\n",
			pid, started.Plane.Kubeconfig)
		<-ctx.Done()
	}
	if !passed {
		return 1, nil
	}
	return 0, nil
}

func runScenarios(ctx context.Context, started *lab.Lab, only []string) bool {
	if err := started.StartShop(ctx); err != nil {
		slog.Error("the application does not start", "error", err)
		return false
	}
	var results []*report.Result
	for _, entry := range scenario.All {
		if len(only) > 0 && !slices.Contains(only, entry.Name) {
			continue
		}
		if ctx.Err() != nil {
			break
		}
		result := scenario.Carry(ctx, started, entry)
		result.Print(os.Stdout)
		results = append(results, result)
	}
	return report.Table(os.Stdout, results) && len(results) > 0
}

// outerPid is the number of this process outside of its namespace. Only valid before the sandbox has its own /proc.
func outerPid() int {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return os.Getpid()
	}
	for line := range strings.Lines(string(text)) {
		if numbers, found := strings.CutPrefix(line, "NSpid:"); found {
			var pid int
			if _, err := fmt.Sscan(numbers, &pid); err == nil {
				return pid
			}
		}
	}
	return os.Getpid()
}

func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}
