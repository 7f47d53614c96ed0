package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Istioctl lets istioctl read a configuration dump.
func (l *Lab) Istioctl(ctx context.Context, dump string, arguments ...string) (string, error) {
	file := filepath.Join(l.options.Dir, "config_dump.json")
	if err := os.WriteFile(file, []byte(dump), 0o644); err != nil {
		return "", err
	}
	command := exec.CommandContext(ctx, l.bin("components"), append([]string{"istioctl"}, append(arguments, "-f", file)...)...)
	var output, complaint bytes.Buffer
	command.Stdout, command.Stderr = &output, &complaint
	if err := command.Run(); err != nil {
		return output.String(), fmt.Errorf("istioctl %s: %w: %s", strings.Join(arguments, " "), err, complaint.String())
	}
	return output.String(), nil
}
