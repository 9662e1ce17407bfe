package gateway_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// startMedia is a gateway in front of a service that has media, which handler
// serves. The service can be stopped.
func startMedia(t *testing.T, handler http.HandlerFunc) (*bed, *httptest.Server) {
	t.Helper()
	service := httptest.NewServer(handler)
	t.Cleanup(service.Close)
	r := newRegistry()
	cfg := defaults()
	cfg.MediaService = "device"
	around := surroundings(t, r)
	around.DialPort = func(ctx context.Context, name, port string) (net.Conn, error) {
		if name != "device" || port != "media" {
			return nil, errors.New("another service was meant: " + name + " " + port)
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", service.Listener.Addr().String())
	}
	return startIn(t, r, cfg, around), service
}

func send(t *testing.T, method, url string, body io.Reader, header map[string]string) (*http.Response, []byte) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, body)
	require.NoError(t, err)
	for name, value := range header {
		request.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response, text
}

func TestMedia(t *testing.T) {
	content := make([]byte, 5<<20) // more than a body or a message may have
	_, _ = rand.Read(content)
	var seen http.Header
	b, service := startMedia(t, func(w http.ResponseWriter, r *http.Request) {
		seen = r.Header.Clone()
		switch {
		case r.Method == http.MethodPatch:
			text, err := io.ReadAll(r.Body)
			if err != nil || !bytes.Equal(text, content) {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			w.Header().Set("Upload-Offset", "5242880")
			w.WriteHeader(http.StatusNoContent)
		case r.URL.Path == "/v1/media/cut":
			w.Header().Set("Content-Length", "1000000")
			_, _ = w.Write(content[:500_000])
			panic(http.ErrAbortHandler)
		default:
			http.ServeContent(w, r, "", time.Unix(0, 0), bytes.NewReader(content))
		}
	})
	t.Run("OK", func(t *testing.T) {
		response, text := send(t, http.MethodGet, b.url+"/v1/media/x", nil, map[string]string{
			"X-Request-Id": "mine", "X-Marquee-Peer": "somebody", "X-Forwarded-For": "198.51.100.1", "Authorization": "Bearer x",
		})
		require.Equal(t, http.StatusOK, response.StatusCode)
		require.True(t, bytes.Equal(content, text))
		require.Equal(t, "mine", seen.Get("X-Request-Id"))
		require.Equal(t, "Bearer x", seen.Get("Authorization"))
		require.Equal(t, "127.0.0.1", seen.Get("X-Forwarded-For"), "a client says where it is")
		require.Empty(t, seen.Get("X-Marquee-Peer"))
	})
	t.Run("OKRange", func(t *testing.T) {
		response, text := send(t, http.MethodGet, b.url+"/v1/media/x", nil, map[string]string{"Range": "bytes=1000000-1999999"})
		require.Equal(t, http.StatusPartialContent, response.StatusCode)
		require.Equal(t, "bytes 1000000-1999999/5242880", response.Header.Get("Content-Range"))
		require.True(t, bytes.Equal(content[1_000_000:2_000_000], text))
	})
	t.Run("OKHead", func(t *testing.T) {
		response, text := send(t, http.MethodHead, b.url+"/v1/media/x", nil, nil)
		require.Equal(t, http.StatusOK, response.StatusCode)
		require.EqualValues(t, len(content), response.ContentLength)
		require.Empty(t, text)
	})
	t.Run("OKUpload", func(t *testing.T) {
		response, _ := send(t, http.MethodPatch, b.url+"/v1/media/uploads/1", bytes.NewReader(content), nil)
		require.Equal(t, http.StatusNoContent, response.StatusCode)
		require.Equal(t, "5242880", response.Header.Get("Upload-Offset"))
	})
	t.Run("ErrCut", func(t *testing.T) {
		response, err := http.Get(b.url + "/v1/media/cut")
		require.NoError(t, err)
		defer response.Body.Close()
		_, err = io.Copy(io.Discard, response.Body)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF, "half of it looks like all of it")
	})
	t.Run("ErrUnavailable", func(t *testing.T) {
		service.CloseClientConnections()
		service.Close()
		response, text := send(t, http.MethodGet, b.url+"/v1/media/x", nil, nil)
		require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
		require.Equal(t, "1", response.Header.Get("Retry-After"))
		require.Equal(t, "application/problem+json", response.Header.Get("Content-Type"))
		var problem struct{ Reason string }
		require.NoError(t, json.Unmarshal(text, &problem))
		require.Equal(t, "MEDIA_UNAVAILABLE", problem.Reason)
	})
}

// A client that does not read, and one that does not send, hold up nobody else,
// and go when the gateway does.
func TestMediaSlow(t *testing.T) {
	b, _ := startMedia(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPatch {
			_, _ = io.Copy(io.Discard, r.Body)
			return
		}
		chunk := make([]byte, 1<<20)
		for range 64 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	for range 20 {
		for _, request := range []string{"GET /v1/media/x HTTP/1.1\r\nHost: x\r\n\r\n", "PATCH /v1/media/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx"} {
			conn, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
			require.NoError(t, err)
			t.Cleanup(func() { conn.Close() })
			_, err = io.WriteString(conn, request)
			require.NoError(t, err)
		}
	}
	response, _ := send(t, http.MethodPatch, b.url+"/v1/media/x", strings.NewReader("y"), nil)
	require.Equal(t, http.StatusOK, response.StatusCode)
}

func TestNoMedia(t *testing.T) {
	b := startIn(t, newRegistry(), defaults(), surroundings(t, newRegistry()))
	response, _ := send(t, http.MethodGet, b.url+"/v1/media/x", nil, nil)
	require.Equal(t, http.StatusNotFound, response.StatusCode)
}
