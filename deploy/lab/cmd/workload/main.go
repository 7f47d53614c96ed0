// Command workload is the program in the lab's pods: a server that tells who called it, and a client that records every
// request it makes.
package main

import (
	"fmt"
	"os"
)

var commands = map[string]func([]string) error{
	"serve":   serve,
	"request": request,
	"load":    load,
	"hold":    hold,
	"capture": capture,
}

func main() {
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "workload: one of serve, request, load, hold, capture; each has -help")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "workload %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}
