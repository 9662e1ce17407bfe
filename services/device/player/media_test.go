package player

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var picture = bytes.Repeat([]byte("a picture of a thing "), 50_000)

func itemAt(address string, content []byte) Item {
	sum := sha256.Sum256(content)
	return Item{CreativeID: "spring-sale", URL: address, SHA256: hex.EncodeToString(sum[:]), MediaType: "image/png", DurationMS: 100}
}

func newMedia(t *testing.T) *Media {
	t.Helper()
	m, err := NewMedia(filepath.Join(t.TempDir(), "media"), nil)
	require.NoError(t, err)
	return m
}

// get asks for an item, and returns what went wrong on the way.
func get(t *testing.T, m *Media, item Item) (problems []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	require.NoError(t, m.Get(ctx, item, func(err error) {
		problems = append(problems, err.Error())
		_, statErr := os.Stat(m.Path(item.SHA256))
		require.ErrorIs(t, statErr, os.ErrNotExist, "it is there before it is whole")
	}))
	good, err := hasHash(m.Path(item.SHA256), item.SHA256)
	require.NoError(t, err)
	require.True(t, good)
	return problems
}

// TestMedia has a server do each thing once that a fetch must survive, and then
// answer as it should.
func TestMedia(t *testing.T) {
	half := len(picture) / 2
	cut := func(out http.ResponseWriter, tag string) {
		out.Header().Set("ETag", tag)
		out.Header().Set("Content-Length", fmt.Sprint(len(picture)))
		_, _ = out.Write(picture[:half])
		panic(http.ErrAbortHandler)
	}
	for name, c := range map[string]struct {
		first   http.HandlerFunc
		problem string
		resumed bool
		change  func(m *Media)
	}{
		"OK":      {nil, "", false, nil},
		"CutOff":  {func(out http.ResponseWriter, _ *http.Request) { cut(out, `"good"`) }, "unexpected EOF", true, nil},
		"Changed": {func(out http.ResponseWriter, _ *http.Request) { cut(out, `"other"`) }, "unexpected EOF", false, nil},
		"WeakTag": {func(out http.ResponseWriter, _ *http.Request) { cut(out, `W/"good"`) }, "unexpected EOF", false, nil},
		"ErrLies": {func(out http.ResponseWriter, _ *http.Request) {
			_, _ = out.Write(bytes.ToUpper(picture))
		}, "it is not what was announced", false, nil},
		"ErrShort": {func(out http.ResponseWriter, _ *http.Request) {
			_, _ = out.Write(picture[:half])
		}, "it is not what was announced", false, nil},
		"ErrTooLong": {func(out http.ResponseWriter, _ *http.Request) {
			out.Header().Set("Content-Length", "2000000000")
			out.WriteHeader(http.StatusOK)
		}, "it has 2000000000 bytes; at most 1073741824 are taken", false, nil},
		"ErrEndless": {func(out http.ResponseWriter, req *http.Request) {
			for req.Context().Err() == nil {
				_, _ = out.Write(picture)
			}
		}, "it has more than 2000000 bytes", false, func(m *Media) { m.most = 2_000_000 }},
		"ErrStalled": {func(out http.ResponseWriter, req *http.Request) {
			_, _ = out.Write(picture[:half])
			_ = http.NewResponseController(out).Flush()
			<-req.Context().Done()
		}, "nothing came for 2s", false, func(m *Media) { m.stall = 2 * time.Second }},
		"ErrSilent": {func(_ http.ResponseWriter, req *http.Request) {
			<-req.Context().Done()
		}, "nothing came for 2s", false, func(m *Media) { m.stall = 2 * time.Second }},
		"ErrNotFound":    {http.NotFound, "the answer is 404 Not Found", false, nil},
		"ErrRedirects":   {func(out http.ResponseWriter, req *http.Request) { http.Redirect(out, req, "/", http.StatusFound) }, "stopped after 10 redirects", false, nil},
		"ErrUnaskedPart": {func(out http.ResponseWriter, _ *http.Request) { out.WriteHeader(http.StatusPartialContent) }, "the answer is 206", false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var failing atomic.Bool
			failing.Store(c.first != nil)
			var mu sync.Mutex
			var ranges []string
			server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, req *http.Request) {
				if failing.Load() {
					c.first(out, req)
					return
				}
				mu.Lock()
				ranges = append(ranges, req.Header.Get("Range"))
				mu.Unlock()
				out.Header().Set("ETag", `"good"`)
				http.ServeContent(out, req, "", time.Time{}, bytes.NewReader(picture))
			}))
			defer server.Close()
			m := newMedia(t)
			if c.change != nil {
				c.change(m)
			}
			item := itemAt(server.URL, picture)
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
			defer cancel()
			var problems []string
			require.NoError(t, m.Get(ctx, item, func(err error) {
				failing.Store(false)
				problems = append(problems, err.Error())
			}))
			if c.problem == "" {
				require.Empty(t, problems)
			} else {
				require.Len(t, problems, 1)
				require.Contains(t, problems[0], c.problem)
				require.Contains(t, problems[0], item.URL)
			}
			require.Len(t, ranges, 1)
			if c.resumed {
				require.Equal(t, fmt.Sprintf("bytes=%d-", half), ranges[0])
			}
			require.Empty(t, get(t, m, item))
			require.Len(t, ranges, 1, "it is fetched twice")
			entries, err := os.ReadDir(m.dir)
			require.NoError(t, err)
			require.Len(t, entries, 1, "something is left over")
		})
	}
}

// TestMediaRestart: what is there when a player starts is used, unless it is broken.
func TestMediaRestart(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = out.Write(picture)
	}))
	defer server.Close()
	m := newMedia(t)
	item := itemAt(server.URL, picture)
	require.Empty(t, get(t, m, item))
	again, err := NewMedia(m.dir, nil)
	require.NoError(t, err)
	require.Empty(t, get(t, again, item))
	require.EqualValues(t, 1, asked.Load())
	require.NoError(t, os.Truncate(m.Path(item.SHA256), 7))
	again, err = NewMedia(m.dir, nil)
	require.NoError(t, err)
	require.Empty(t, get(t, again, item))
	require.EqualValues(t, 2, asked.Load())
	// All of it came before the power went, and its name did not.
	require.NoError(t, os.Rename(m.Path(item.SHA256), m.Path(item.SHA256)+".part"))
	again, err = NewMedia(m.dir, nil)
	require.NoError(t, err)
	require.Empty(t, get(t, again, item))
	require.EqualValues(t, 2, asked.Load())
}

// TestMediaShared: many devices that want the same make one request.
func TestMediaShared(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = out.Write(picture)
	}))
	defer server.Close()
	m := newMedia(t)
	item := itemAt(server.URL, picture)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() { _ = m.Get(t.Context(), item, func(error) {}) })
	}
	all.Wait()
	require.EqualValues(t, 1, asked.Load())
}

func TestTidy(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, req *http.Request) {
		_, _ = out.Write([]byte(req.URL.Path))
	}))
	defer server.Close()
	m := newMedia(t)
	var items []Item
	for n := range 4 {
		path := fmt.Sprintf("/content-%d", n)
		items = append(items, itemAt(server.URL+path, []byte(path)))
		require.Empty(t, get(t, m, items[n]))
		require.NoError(t, os.Chtimes(m.Path(items[n].SHA256), time.Time{}, time.Unix(int64(1_000_000+n), 0)))
	}
	there := func() (found []int) {
		for n, item := range items {
			if _, err := os.Stat(m.Path(item.SHA256)); err == nil {
				found = append(found, n)
			}
		}
		return found
	}
	m.Use("one", items[0])
	m.Use("two", items[1])
	m.unused = 1000
	require.NoError(t, m.Tidy())
	require.Equal(t, []int{0, 1, 2, 3}, there())
	m.unused = 10
	require.NoError(t, m.Tidy())
	require.Equal(t, []int{0, 1, 3}, there(), "the oldest that nobody uses goes")
	m.Use("two")
	m.unused = 0
	require.NoError(t, m.Tidy())
	require.Equal(t, []int{0}, there())
	require.Empty(t, get(t, m, items[1]), "it can be had again")
}

// TestMediaOfGateways: of media that are known by a path what one gateway breaks off
// is fetched from the next.
func TestMediaOfGateways(t *testing.T) {
	item := itemAt("", picture)
	item.URL = "/v1/media/" + item.SHA256
	require.NoError(t, item.check())
	half := len(picture) / 2
	var mu sync.Mutex
	var asked []string
	gateway := func(name string, answer http.HandlerFunc) string {
		server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, req *http.Request) {
			mu.Lock()
			asked = append(asked, name+" "+req.Header.Get("Range"))
			mu.Unlock()
			if req.URL.Path != item.URL {
				http.NotFound(out, req)
				return
			}
			out.Header().Set("ETag", `"`+item.SHA256+`"`)
			answer(out, req)
		}))
		t.Cleanup(server.Close)
		return server.URL
	}
	cuts := func(out http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Range") != "" {
			http.Error(out, "no more", http.StatusServiceUnavailable)
			return
		}
		out.Header().Set("Content-Length", fmt.Sprint(len(picture)))
		_, _ = out.Write(picture[:half])
		panic(http.ErrAbortHandler)
	}
	good := func(out http.ResponseWriter, req *http.Request) {
		http.ServeContent(out, req, "", time.Time{}, bytes.NewReader(picture))
	}
	broken := gateway("broken", func(out http.ResponseWriter, _ *http.Request) { out.WriteHeader(http.StatusBadGateway) })
	one, other, whole := gateway("one", cuts), gateway("other", cuts), gateway("good", good)
	const gone = "http://127.0.0.1:1"
	media := func(gateways ...string) *Media {
		t.Helper()
		mu.Lock()
		asked = nil
		mu.Unlock()
		m, err := NewMedia(filepath.Join(t.TempDir(), "media"), func() ([]string, error) { return gateways, nil })
		require.NoError(t, err)
		return m
	}
	t.Run("OK", func(t *testing.T) {
		require.Empty(t, get(t, media(whole+"/"), item))
		require.Equal(t, []string{"good "}, asked)
	})
	t.Run("TheNext", func(t *testing.T) {
		for range 8 {
			require.Empty(t, get(t, media(gone, broken, whole), item), "one gateway has it")
		}
	})
	t.Run("Resumed", func(t *testing.T) {
		have := []string{one}
		m := media()
		m.gateways = func() ([]string, error) { return have, nil }
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		var problems []string
		require.NoError(t, m.Get(ctx, item, func(err error) {
			problems = append(problems, err.Error())
			// All but one fail when it goes on, and leave what there is.
			have = []string{one, other, broken, gone, whole}
		}))
		require.Len(t, problems, 1)
		require.Contains(t, problems[0], one+item.URL)
		rest := fmt.Sprintf(" bytes=%d-", half)
		require.Equal(t, "one ", asked[0])
		require.Equal(t, "good"+rest, asked[len(asked)-1])
		for _, request := range asked[1:] {
			require.Contains(t, request, rest, "it is fetched from the beginning again")
		}
	})
	t.Run("ErrNone", func(t *testing.T) {
		m := media()
		var problem string
		ctx, cancel := context.WithCancel(t.Context())
		require.ErrorIs(t, m.Get(ctx, item, func(err error) {
			problem = err.Error()
			cancel()
		}), context.Canceled)
		require.Contains(t, problem, "no gateway is known: --gateway names them")
	})
	t.Run("ErrAll", func(t *testing.T) {
		m := media(broken, gone)
		var problem string
		ctx, cancel := context.WithCancel(t.Context())
		require.ErrorIs(t, m.Get(ctx, item, func(err error) {
			problem = err.Error()
			cancel()
		}), context.Canceled)
		require.Contains(t, problem, "502 Bad Gateway")
		require.Contains(t, problem, "connection refused")
	})
	t.Run("ErrPath", func(t *testing.T) {
		wrong := item
		wrong.URL = "/v1/media/" + item.SHA256[1:]
		require.ErrorContains(t, wrong.check(), "does not begin with http")
		wrong.URL = "/etc/passwd"
		require.ErrorContains(t, wrong.check(), "does not begin with http")
	})
}
