// Package datastore is etcd for a cluster that lives as long as its run: nothing is synced to the disk.
package datastore

import (
	"fmt"
	"net/url"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
)

// startLimit bounds how long etcd may take until it serves.
const startLimit = 30 * time.Second

// Command runs etcd until the process is ended.
func Command() *cobra.Command {
	var dir, client, peer string
	command := &cobra.Command{
		Use:          "etcd",
		SilenceUsage: true,
		RunE:         func(*cobra.Command, []string) error { return run(dir, client, peer) },
	}
	command.Flags().StringVar(&dir, "data-dir", "", "where the data are kept")
	command.Flags().StringVar(&client, "client", "http://127.0.0.1:2379", "address for clients")
	command.Flags().StringVar(&peer, "peer", "http://127.0.0.1:2380", "address for peers")
	return command
}

func run(dir, client, peer string) error {
	clientURL, err := url.Parse(client)
	if err != nil {
		return fmt.Errorf("--client: %w", err)
	}
	peerURL, err := url.Parse(peer)
	if err != nil {
		return fmt.Errorf("--peer: %w", err)
	}
	config := embed.NewConfig()
	config.Dir = dir
	config.UnsafeNoFsync = true
	config.LogLevel = "error"
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*clientURL}, []url.URL{*clientURL}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{*peerURL}, []url.URL{*peerURL}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	server, err := embed.StartEtcd(config)
	if err != nil {
		return fmt.Errorf("etcd in %s: %w", dir, err)
	}
	defer server.Close()
	select {
	case <-server.Server.ReadyNotify():
	case <-time.After(startLimit):
		return fmt.Errorf("etcd did not serve within %s", startLimit)
	}
	return <-server.Err()
}
