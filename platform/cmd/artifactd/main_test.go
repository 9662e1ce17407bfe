package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/artifacts"
	"github.com/marquee-ads/marquee/platform/keys"
)

// written is a settings file for a machine whose keys are in files.
func written(t *testing.T, k *keys.Keys, node string, settings map[string]any) string {
	t.Helper()
	own, err := k.Node(node)
	require.NoError(t, err)
	dir := t.TempDir()
	for name, text := range map[string][]byte{"ca.pem": k.CA, "node.pem": own.Certificate, "node-key.pem": own.Key} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	all := map[string]any{
		"listen": "127.0.0.1:0", "folder": filepath.Join(dir, "artifacts"),
		"ca_file": filepath.Join(dir, "ca.pem"), "cert_file": filepath.Join(dir, "node.pem"), "key_file": filepath.Join(dir, "node-key.pem"),
	}
	for name, value := range settings {
		all[name] = value
	}
	text, err := json.Marshal(all)
	require.NoError(t, err)
	path := filepath.Join(dir, "artifactd.json")
	require.NoError(t, os.WriteFile(path, text, 0o600))
	return path
}

// serve runs the program and returns its address. It ends without an error when
// the test does.
func serve(t *testing.T, config string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	listening, ended := make(chan net.Addr, 1), make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"--config", config}, slog.New(slog.DiscardHandler), func(a net.Addr) { listening <- a })
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			require.NoError(t, err)
		case <-time.After(20 * time.Second):
			require.FailNow(t, "it does not end")
		}
	})
	select {
	case a := <-listening:
		return a.String()
	case err := <-ended:
		ended <- nil
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		require.FailNow(t, "it does not listen")
	}
	return ""
}

func TestServerAndClient(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	k, err := keys.Ensure(dir, keys.Nodes(1, 1), time.Now())
	require.NoError(t, err)
	config := written(t, k, "server-1", map[string]any{"role": "server"})
	server := serve(t, config)
	client := serve(t, written(t, k, "client-1", map[string]any{"role": "client", "servers": []string{server}}))

	get := func(sum string) string {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+client+"/"+sum+"/hello", nil)
		require.NoError(t, err)
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return string(text)
	}
	upload := func(k *keys.Keys, text string) string {
		operator, err := k.OperatorTLS(keys.ConsulServerName)
		require.NoError(t, err)
		path, sum := filepath.Join(t.TempDir(), "hello"), fmt.Sprintf("%x", sha256.Sum256([]byte(text)))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		_, err = artifacts.NewUploader([]string{server}, operator, nil).Upload(t.Context(), path, sum)
		require.NoError(t, err)
		return sum
	}
	require.Equal(t, "hello", get(upload(k, "hello")))

	t.Run("RenewedCertificates", func(t *testing.T) {
		k, err := keys.Rotate(dir, time.Now(), keys.Certificates)
		require.NoError(t, err)
		own, err := k.Node("server-1")
		require.NoError(t, err)
		// Key and certificate are replaced one after the other: a handshake in
		// between fails, and the next does not.
		require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(config), "node-key.pem"), own.Key, 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(config), "node.pem"), own.Certificate, 0o600))
		require.Equal(t, "hello again", get(upload(k, "hello again")))
	})
}

func TestBadSettings(t *testing.T) {
	k, err := keys.Ensure(filepath.Join(t.TempDir(), "keys"), keys.Nodes(1, 1), time.Now())
	require.NoError(t, err)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	for name, test := range map[string]struct {
		settings map[string]any
		says     string
	}{
		"NoRole":      {map[string]any{}, `role is "": want server or client`},
		"Role":        {map[string]any{"role": "edge"}, `role is "edge"`},
		"NoServers":   {map[string]any{"role": "client"}, "servers is missing"},
		"Unknown":     {map[string]any{"role": "server", "port": 1}, `"port"`},
		"Limit":       {map[string]any{"role": "server", "limit": -1}, "limit is -1"},
		"Type":        {map[string]any{"role": "server", "limit": "much"}, "limit"},
		"NoCA":        {map[string]any{"role": "server", "ca_file": "/nowhere/ca.pem"}, "/nowhere/ca.pem"},
		"NoKey":       {map[string]any{"role": "server", "key_file": "/nowhere/key.pem"}, "/nowhere/key.pem"},
		"PortIsTaken": {map[string]any{"role": "server", "listen": taken.Addr().String()}, taken.Addr().String()},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err := run(ctx, []string{"--config", written(t, k, "server-1", test.settings)}, slog.New(slog.DiscardHandler), nil)
			require.ErrorContains(t, err, test.says)
		})
	}
	t.Run("NoFile", func(t *testing.T) {
		require.ErrorContains(t, run(t.Context(), []string{"--config", "/nowhere/artifactd.json"}, slog.New(slog.DiscardHandler), nil), "/nowhere/artifactd.json")
		require.ErrorContains(t, run(t.Context(), nil, slog.New(slog.DiscardHandler), nil), "--config")
	})
}

func TestWhereItListens(t *testing.T) {
	for text, want := range map[string]string{
		`{"role":"server"}`: "0.0.0.0:4700",
		`{"role":"client","servers":["10.77.0.11:4700"]}`: "127.0.0.1:4700",
	} {
		path := filepath.Join(t.TempDir(), "artifactd.json")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		s, err := load([]string{"--config", path})
		require.NoError(t, err)
		require.Equal(t, want, s.Listen)
		require.Equal(t, "/var/lib/marquee/artifacts", s.Folder)
	}
}
