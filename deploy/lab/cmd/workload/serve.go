package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"corelane/lab/internal/traffic"
)

// unready makes /ready answer 503.
var unready atomic.Bool

// serve answers HTTP on every port of -http with who was asked by whom, and echoes bytes on every port of -tcp. After
// SIGTERM it is not ready any more and goes on for -linger, while its endpoint is taken out everywhere.
func serve(arguments []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	httpPorts := flags.String("http", "8080", "ports that answer HTTP, comma-separated")
	tcpPorts := flags.String("tcp", "", "ports that echo, comma-separated")
	linger := flags.Duration("linger", 2*time.Second, "how long to serve on after SIGTERM")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	failed := make(chan error, 8)
	for _, port := range split(*httpPorts) {
		listener, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		go func() { failed <- http.Serve(listener, answer(port)) }()
	}
	for _, port := range split(*tcpPorts) {
		listener, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		go func() { failed <- echo(listener) }()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		unready.Store(true)
		time.Sleep(*linger)
		return nil
	}
}

func answer(port string) http.Handler {
	name, _ := os.Hostname()
	if pod := os.Getenv("POD_NAME"); pod != "" {
		name = pod
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ready":
			if unready.Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		case "/set-ready":
			unready.Store(r.URL.Query().Get("value") == "false")
		}
		delay, err := time.ParseDuration(r.URL.Query().Get("delay"))
		if err == nil {
			time.Sleep(delay)
		}
		w.Header().Set("Content-Type", "application/json")
		// A client that has gone needs no answer.
		_ = json.NewEncoder(w).Encode(traffic.Answer{Pod: name, Port: port, Client: r.RemoteAddr, Host: r.Host})
	})
}

func echo(listener net.Listener) error {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer connection.Close()
			// Either side may end a connection whenever it likes.
			_, _ = io.Copy(connection, connection)
		}()
	}
}

// hold keeps one TCP connection open, sends a line every -interval and expects it back, until SIGTERM.
func hold(arguments []string) error {
	flags := flag.NewFlagSet("hold", flag.ExitOnError)
	interval := flags.Duration("interval", 50*time.Millisecond, "time between two lines")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("one argument: HOST:PORT of an echo server")
	}
	connection, err := net.DialTimeout("tcp", flags.Arg(0), 5*time.Second)
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	lines := traffic.NewWriter(os.Stdout)
	buffer := make([]byte, 64)
	for count := 0; ctx.Err() == nil; count++ {
		began := time.Now()
		line := fmt.Sprintf("line %08d\n", count)
		result := traffic.Result{Began: began, Target: flags.Arg(0)}
		if err := roundTrip(connection, line, buffer); err != nil {
			result.Error = err.Error()
			result.Took = time.Since(began)
			return errors.Join(lines.Write(result), err)
		}
		result.Took = time.Since(began)
		if err := lines.Write(result); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(*interval):
		}
	}
	return nil
}

func roundTrip(connection net.Conn, line string, buffer []byte) error {
	if err := connection.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(connection, line); err != nil {
		return err
	}
	if _, err := io.ReadFull(connection, buffer[:len(line)]); err != nil {
		return err
	}
	if string(buffer[:len(line)]) != line {
		return fmt.Errorf("got %q instead of %q", buffer[:len(line)], line)
	}
	return nil
}

func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}
