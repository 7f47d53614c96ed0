package scenario

import (
	"context"
	"fmt"
	"strings"
)

func istioctl(ctx context.Context, s *stage) error {
	dump, err := s.ProxyPage(ctx, 2, "http://127.0.0.1:15000/config_dump")
	if err != nil {
		return err
	}
	for _, view := range []struct {
		name string
		// row is what one line of the output must hold.
		row []string
	}{
		{"workload", []string{"shop", "echo-2", "HBONE"}},
		{"service", []string{"shop", "echo-headless"}},
		{"certificate", []string{"spiffe://cluster.local/ns/shop/sa/echo", "Leaf", "Available"}},
		{"connections", nil},
		{"policy", nil},
		{"all", []string{"echo-2"}},
	} {
		output, err := s.Istioctl(ctx, dump, "ztunnel-config", view.name)
		got := fmt.Sprintf("%d lines", strings.Count(output, "\n"))
		if err != nil {
			got = err.Error()
		}
		s.Hold("istioctl ztunnel-config "+view.name, strings.Join(append([]string{"reads it"}, view.row...), " "), got,
			err == nil && hasRow(output, view.row))
	}
	return nil
}

// hasRow says whether a line of text holds all parts.
func hasRow(text string, parts []string) bool {
	for line := range strings.Lines(text + "\n") {
		found := true
		for _, part := range parts {
			found = found && strings.Contains(line, part)
		}
		if found {
			return true
		}
	}
	return false
}
