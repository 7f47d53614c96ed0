// Package sandbox keeps a run apart from the machine: it has process, mount and network namespaces of its own. With its
// first process everything in it ends, whatever happens, so nothing can be left behind and no traffic can leave.
package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const flags = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET

// cgroupMount is where a process in the sandbox finds the cgroups.
const cgroupMount = "/run/cgroup"

// Command is this very program with other arguments, as the first process of a sandbox inside the current one.
func Command(arguments ...string) *exec.Cmd {
	command := exec.Command("/proc/self/exe", arguments...)
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL, Setpgid: true}
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	return command
}

// Run runs a sandbox until its first process ends and gives its exit code. The first signal to end is passed on, the
// second one kills.
func Run(command *exec.Cmd) (int, error) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	if err := command.Start(); err != nil {
		return 1, fmt.Errorf("make namespaces (root is needed): %w", err)
	}
	done := make(chan struct{})
	go func() {
		for asked := false; ; asked = true {
			select {
			case <-done:
				return
			case <-signals:
				if asked {
					_ = command.Process.Kill()
				} else {
					_ = command.Process.Signal(syscall.SIGTERM)
				}
			}
		}
	}()
	err := command.Wait()
	close(done)
	if command.ProcessState == nil {
		return 1, err
	}
	return command.ProcessState.ExitCode(), nil
}

// Settle makes the mounts of a sandbox private and gives it the processes' view of its own.
func Settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// Root moves the process into a root directory that holds everything of the machine but /run, which is empty, and
// /host, where a node agent looks for the machine itself. dir must exist and be empty.
func Root(dir string) error {
	if err := unix.Mount("root", dir, "tmpfs", 0, "mode=755,size=64m"); err != nil {
		return fmt.Errorf("mount a root at %s: %w", dir, err)
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := graft(entry, dir); err != nil {
			return fmt.Errorf("root of a node: %w", err)
		}
	}
	if err := unix.Chroot(dir); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := os.Symlink("/", "/host"); err != nil {
		return err
	}
	if err := os.MkdirAll(cgroupMount, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("cgroup", cgroupMount, "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("mount cgroup2 (the kernel must have it): %w", err)
	}
	return nil
}

func graft(entry os.DirEntry, dir string) error {
	from, to := filepath.Join("/", entry.Name()), filepath.Join(dir, entry.Name())
	switch {
	case entry.Name() == "host":
		return nil
	case entry.Type()&os.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case !entry.IsDir():
		return nil
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	if entry.Name() == "run" {
		return nil
	}
	return unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, "")
}

// Cover lays text over a file for everybody in the sandbox.
func Cover(path, text, scratch string) error {
	file := filepath.Join(scratch, filepath.Base(path))
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(file, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("cover %s: %w", path, err)
	}
	return nil
}

// Cgroup makes a cgroup of a run and opens it. Each is named by the run, for RemoveCgroups.
func Cgroup(run, path string) (*os.File, error) {
	dir := filepath.Join(cgroupMount, run, path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cgroup (a writable cgroup2 is needed): %w", err)
	}
	return os.Open(dir)
}

// RemoveCgroups takes away the cgroups of a run once its processes have ended. It is for outside of the sandbox.
func RemoveCgroups(run string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) > 2 && fields[2] == "cgroup2" {
			return removeTree(filepath.Join(fields[1], run))
		}
	}
	return nil
}

// removeTree removes directories only, the deepest first: the files of a cgroup go with it.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeTree(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(dir)
}
