package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMediad(t *testing.T) {
	folder := t.TempDir()
	content := "\x89PNG\r\n\x1a\n and so on"
	sum := sha256.Sum256([]byte(content))
	name := hex.EncodeToString(sum[:])
	require.NoError(t, os.WriteFile(filepath.Join(folder, name), []byte(content), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(folder, "secret"), []byte("secret"), 0o600))

	ctx, cancel := context.WithCancel(t.Context())
	address := make(chan net.Addr, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"--folder", folder, "--listen", "127.0.0.1:0"}, slog.New(slog.DiscardHandler), func(a net.Addr) { address <- a })
	}()
	var url string
	select {
	case a := <-address:
		url = "http://" + a.String()
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		require.Fail(t, "it does not listen")
	}
	get := func(path string, header ...string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+path, http.NoBody)
		require.NoError(t, err)
		if len(header) == 2 {
			req.Header.Set(header[0], header[1])
		}
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return res, string(body)
	}

	res, body := get("/" + name)
	require.Equal(t, http.StatusOK, res.StatusCode)
	require.Equal(t, content, body)
	require.Equal(t, "image/png", res.Header.Get("Content-Type"))
	require.Equal(t, `"`+name+`"`, res.Header.Get("ETag"))
	res, body = get("/"+name, "Range", "bytes=4-")
	require.Equal(t, http.StatusPartialContent, res.StatusCode)
	require.Equal(t, content[4:], body)
	res, _ = get("/healthz")
	require.Equal(t, http.StatusOK, res.StatusCode)
	for _, path := range []string{"/", "/secret", "/" + strings.Repeat("0", 64), "/" + strings.ToUpper(name), "/..%2F" + name, "/" + name + "/x"} {
		res, body := get(path)
		require.Equal(t, http.StatusNotFound, res.StatusCode, path)
		require.NotContains(t, body, "secret")
	}

	cancel()
	require.NoError(t, <-ended)
}

func TestFlags(t *testing.T) {
	for listen, says := range map[string]string{
		"8090":         "is no address",
		"0.0.0.0:8090": "not on loopback",
		"":             "is no address",
	} {
		err := run(t.Context(), []string{"--folder", t.TempDir(), "--listen=" + listen}, slog.New(slog.DiscardHandler), nil)
		require.ErrorContains(t, err, says, listen)
	}
}
