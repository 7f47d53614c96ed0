// Package process starts the lab's programs with their output in files and ends exactly those.
package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Spec says how to start a program.
type Spec struct {
	Name string
	// Command is the program and its arguments.
	Command []string
	// Env is added to PATH and HOME, the only variables that are passed on.
	Env []string
	Dir string
	// Log receives both outputs; it is appended to.
	Log string
	// Cgroup is a descriptor of the cgroup to start in, or 0.
	Cgroup int
}

// Process is a running program.
type Process struct {
	Name    string
	command *exec.Cmd
	done    chan struct{}
	err     error
}

// Start starts a program in the network namespace of the calling thread. It is in a process group of its own, so that
// Ctrl-C reaches the lab alone, and ends with the thread's process at the latest.
func Start(spec Spec) (*Process, error) {
	if err := os.MkdirAll(filepath.Dir(spec.Log), 0o755); err != nil {
		return nil, fmt.Errorf("log of %s: %w", spec.Name, err)
	}
	log, err := os.OpenFile(spec.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", spec.Name, err)
	}
	defer log.Close()
	command := exec.Command(spec.Command[0], spec.Command[1:]...)
	command.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + spec.Dir}, spec.Env...)
	command.Dir = spec.Dir
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, UseCgroupFD: spec.Cgroup != 0, CgroupFD: spec.Cgroup}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	process := &Process{Name: spec.Name, command: command, done: make(chan struct{})}
	go func() {
		process.err = command.Wait()
		close(process.done)
	}()
	return process, nil
}

// Done is closed when the program has ended; then Err says how.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is how the program ended. Only valid once Done is closed.
func (p *Process) Err() error { return p.err }

// ExitCode is the program's exit code, or 128 and the signal that ended it. Only valid once Done is closed.
func (p *Process) ExitCode() int {
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return 128 + int(status.Signal())
		}
		return exit.ExitCode()
	}
	return 0
}

// Pid is the program's process id.
func (p *Process) Pid() int { return p.command.Process.Pid }

// Stop asks the program to end and kills it when it has not after grace.
func (p *Process) Stop(grace time.Duration) {
	// A program that has ended already needs no signal.
	_ = p.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(grace):
		_ = p.command.Process.Kill()
		<-p.done
	}
}

// Kill ends the program at once.
func (p *Process) Kill() {
	_ = p.command.Process.Kill()
	<-p.done
}
