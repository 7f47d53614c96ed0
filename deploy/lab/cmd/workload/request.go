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
	"syscall"
	"time"

	"corelane/lab/internal/traffic"
)

// bodyMax bounds what is read of a response.
const bodyMax = 4 << 20

// request makes -n requests one after the other and prints a result for each; with -raw it prints the body instead.
func request(arguments []string) error {
	flags := flag.NewFlagSet("request", flag.ExitOnError)
	count := flags.Int("n", 1, "how many requests")
	timeout := flags.Duration("timeout", 5*time.Second, "for one request")
	nameserver := flags.String("nameserver", "", "resolve names by this server instead of the system's")
	raw := flags.Bool("raw", false, "print the body")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("one argument: the URL")
	}
	client := newClient(*timeout, *nameserver, false)
	lines := traffic.NewWriter(os.Stdout)
	for range *count {
		if *raw {
			response, err := client.Get(flags.Arg(0))
			if err != nil {
				return err
			}
			if _, err := io.Copy(os.Stdout, response.Body); err != nil {
				return err
			}
			return response.Body.Close()
		}
		if err := lines.Write(one(client, flags.Arg(0))); err != nil {
			return err
		}
	}
	return nil
}

// load makes a request every -interval until SIGTERM, each on a connection of its own unless -keepalive.
func load(arguments []string) error {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	interval := flags.Duration("interval", 20*time.Millisecond, "time between two requests")
	timeout := flags.Duration("timeout", 5*time.Second, "for one request")
	keepAlive := flags.Bool("keepalive", false, "reuse connections")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("one argument: the URL")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	client := newClient(*timeout, "", *keepAlive)
	lines := traffic.NewWriter(os.Stdout)
	ticker := time.NewTicker(*interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if err := lines.Write(one(client, flags.Arg(0))); err != nil {
				return err
			}
		}
	}
}

func newClient(timeout time.Duration, nameserver string, keepAlive bool) *http.Client {
	dialer := &net.Dialer{Timeout: timeout}
	if nameserver != "" {
		dialer.Resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, nameserver)
		}}
	}
	transport := &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: !keepAlive}
	return &http.Client{Timeout: timeout, Transport: transport}
}

func one(client *http.Client, url string) traffic.Result {
	result := traffic.Result{Began: time.Now(), Target: url}
	if err := ask(client, url, &result); err != nil {
		result.Error = err.Error()
	}
	result.Took = time.Since(result.Began)
	return result
}

func ask(client *http.Client, url string, result *traffic.Result) error {
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	result.Status = response.StatusCode
	body, err := io.ReadAll(io.LimitReader(response.Body, bodyMax))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", response.StatusCode)
	}
	return json.Unmarshal(body, &result.Answer)
}
