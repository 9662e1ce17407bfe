package artifacts_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/artifacts"
	"github.com/marquee-ads/marquee/platform/keys"
)

const limit = 1 << 18

// site is the keys of a cluster and its servers.
type site struct {
	keys *keys.Keys
	log  *slog.Logger
}

func newSite(t *testing.T) *site {
	t.Helper()
	k, err := keys.Ensure(filepath.Join(t.TempDir(), "keys"), keys.Nodes(1, 1), time.Now())
	require.NoError(t, err)
	return &site{keys: k, log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

// server is one of the cluster's.
type server struct {
	address string
	dir     string
	asked   atomic.Int64
	http    *httptest.Server
}

func (s *site) server(t *testing.T) *server {
	t.Helper()
	own := &server{dir: t.TempDir()}
	handler, err := artifacts.NewServer(own.dir, limit, keys.OperatorName, s.log)
	require.NoError(t, err)
	own.http = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		own.asked.Add(1)
		handler.ServeHTTP(w, r)
	}))
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(s.keys.CA))
	own.http.TLS = &tls.Config{Certificates: []tls.Certificate{s.node(t, "server-1")}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	own.http.Config.ErrorLog = slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)
	own.http.StartTLS()
	t.Cleanup(own.http.Close)
	own.address = own.http.Listener.Addr().String()
	return own
}

func (s *site) node(t *testing.T, name string) tls.Certificate {
	t.Helper()
	own, err := s.keys.Node(name)
	require.NoError(t, err)
	pair, err := tls.X509KeyPair(own.Certificate, own.Key)
	require.NoError(t, err)
	return pair
}

func (s *site) uploader(t *testing.T, servers ...*server) *artifacts.Uploader {
	t.Helper()
	config, err := s.keys.OperatorTLS(keys.ConsulServerName)
	require.NoError(t, err)
	return artifacts.NewUploader(addresses(servers), config, nil)
}

func addresses(servers []*server) []string {
	all := make([]string, len(servers))
	for i, s := range servers {
		all[i] = s.address
	}
	return all
}

// as calls with a machine's certificate, or with the operator's.
func (s *site) as(t *testing.T, name string) *http.Client {
	t.Helper()
	config, err := s.keys.OperatorTLS(keys.ConsulServerName)
	require.NoError(t, err)
	if name != keys.OperatorName {
		config.Certificates = []tls.Certificate{s.node(t, name)}
	}
	transport := &http.Transport{TLSClientConfig: config}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

func (s *site) mirror(t *testing.T, servers ...*server) (url, dir string) {
	t.Helper()
	return s.mirrorOf(t, addresses(servers))
}

func (s *site) mirrorOf(t *testing.T, servers []string) (url, dir string) {
	t.Helper()
	config, err := keys.TLS(s.keys.CA, s.node(t, "client-1"), keys.ConsulServerName)
	require.NoError(t, err)
	dir = t.TempDir()
	m, err := artifacts.NewMirror(dir, limit, servers, config, s.log)
	require.NoError(t, err)
	listener := httptest.NewServer(m)
	t.Cleanup(listener.Close)
	return listener.URL, dir
}

// program is a file and its SHA-256.
func program(t *testing.T, text string) (path, sum string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "accountd")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o700))
	return path, sumOf(text)
}

func sumOf(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

func do(t *testing.T, client *http.Client, method, url, body string) (status int, text string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	response, err := client.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	all, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(all)
}

// left are the files below a folder.
func left(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil // gone while we looked
		}
		if err == nil && !d.IsDir() {
			found = append(found, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	}))
	return found
}

func TestUploadAndMirror(t *testing.T) {
	s := newSite(t)
	one, two, three := s.server(t), s.server(t), s.server(t)
	path, sum := program(t, "a program")
	url, err := s.uploader(t, one, two, three).Upload(t.Context(), path, sum)
	require.NoError(t, err)
	require.Equal(t, "http://127.0.0.1:4700/"+sum+"/accountd", url)
	for _, server := range []*server{one, two, three} {
		require.Equal(t, []string{sum + "/accountd"}, left(t, server.dir))
	}

	asked := one.asked.Load()
	_, err = s.uploader(t, one, two, three).Upload(t.Context(), path, sum)
	require.NoError(t, err)
	require.Equal(t, asked+1, one.asked.Load(), "what is there was uploaded again")

	mirror, dir := s.mirror(t, one, two, three)
	status, text := do(t, http.DefaultClient, http.MethodGet, mirror+"/"+sum+"/accountd", "")
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, "a program", text)
	require.Equal(t, []string{sum + "/accountd"}, left(t, dir))

	for _, server := range []*server{one, two, three} {
		server.http.Close()
	}
	status, text = do(t, http.DefaultClient, http.MethodGet, mirror+"/"+sum+"/accountd", "")
	require.Equal(t, http.StatusOK, status, "the mirror has it")
	require.Equal(t, "a program", text)
}

func TestUploadToSomeServers(t *testing.T) {
	s := newSite(t)
	one, two, three := s.server(t), s.server(t), s.server(t)
	path, sum := program(t, "a program")
	three.http.Close()
	_, err := s.uploader(t, one, two, three).Upload(t.Context(), path, sum)
	require.NoError(t, err, "most servers have it")
	two.http.Close()
	path, sum = program(t, "another program")
	_, err = s.uploader(t, one, two, three).Upload(t.Context(), path, sum)
	require.ErrorContains(t, err, "1 of 3 servers have it")
	require.ErrorContains(t, err, two.address)
	require.ErrorContains(t, err, three.address)
}

func TestRefused(t *testing.T) {
	s := newSite(t)
	own := s.server(t)
	uploader := s.uploader(t, own)
	operator := s.as(t, keys.OperatorName)
	base := "https://" + own.address
	nothing := func(t *testing.T) {
		t.Helper()
		require.Empty(t, left(t, own.dir))
	}

	t.Run("WrongHash", func(t *testing.T) {
		path, _ := program(t, "a program")
		_, err := uploader.Upload(t.Context(), path, sumOf("another program"))
		require.ErrorIs(t, err, artifacts.ErrMismatch)
		nothing(t)
	})
	t.Run("TooLarge", func(t *testing.T) {
		text := strings.Repeat("x", limit+1)
		path, sum := program(t, text)
		_, err := uploader.Upload(t.Context(), path, sum)
		require.ErrorIs(t, err, artifacts.ErrTooLarge)
		nothing(t)
	})
	t.Run("TooLargeWithoutSayingSo", func(t *testing.T) {
		text := strings.Repeat("x", limit+1)
		// A reader of unknown length is sent in chunks.
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, base+"/"+sumOf(text)+"/accountd", io.MultiReader(strings.NewReader(text)))
		require.NoError(t, err)
		response, err := operator.Do(request)
		require.NoError(t, err)
		response.Body.Close()
		require.Equal(t, http.StatusRequestEntityTooLarge, response.StatusCode)
		nothing(t)
	})
	t.Run("ExactlyAsLargeAsAllowed", func(t *testing.T) {
		text := strings.Repeat("x", limit)
		path, sum := program(t, text)
		_, err := uploader.Upload(t.Context(), path, sum)
		require.NoError(t, err)
		for range 2 { // the second time it is gone already
			status, _ := do(t, operator, http.MethodDelete, base+"/"+sum+"/accountd", "")
			require.Equal(t, http.StatusNoContent, status)
			nothing(t)
		}
	})
	t.Run("AMachineReadsAndDoesNotWrite", func(t *testing.T) {
		client := s.as(t, "client-1")
		status, text := do(t, client, http.MethodPut, base+"/"+sumOf("x")+"/accountd", "x")
		require.Equal(t, http.StatusForbidden, status)
		require.Contains(t, text, `this is that of "client-1"`)
		status, _ = do(t, client, http.MethodDelete, base+"/"+sumOf("x")+"/accountd", "")
		require.Equal(t, http.StatusForbidden, status)
		status, _ = do(t, client, http.MethodGet, base+"/"+sumOf("x")+"/accountd", "")
		require.Equal(t, http.StatusNotFound, status)
		nothing(t)
	})
	t.Run("AnotherClustersOperator", func(t *testing.T) {
		path, sum := program(t, "a program")
		_, err := newSite(t).uploader(t, own).Upload(t.Context(), path, sum)
		require.ErrorContains(t, err, "certificate")
		other := newSite(t).as(t, keys.OperatorName)
		other.Transport.(*http.Transport).TLSClientConfig.RootCAs = operator.Transport.(*http.Transport).TLSClientConfig.RootCAs
		_, err = other.Get(base + "/" + sum + "/accountd")
		require.ErrorContains(t, err, "tls: ", "it took a certificate of another cluster")
		nothing(t)
	})
	t.Run("NoCertificate", func(t *testing.T) {
		client := s.as(t, keys.OperatorName)
		client.Transport.(*http.Transport).TLSClientConfig.Certificates = nil
		_, err := client.Get(base + "/" + sumOf("x") + "/accountd")
		require.ErrorContains(t, err, "certificate required")
	})
	t.Run("WithoutTLS", func(t *testing.T) {
		handler, err := artifacts.NewServer(t.TempDir(), limit, keys.OperatorName, s.log)
		require.NoError(t, err)
		plain := httptest.NewServer(handler)
		defer plain.Close()
		status, _ := do(t, http.DefaultClient, http.MethodGet, plain.URL+"/"+sumOf("x")+"/accountd", "")
		require.Equal(t, http.StatusForbidden, status)
	})
	t.Run("Method", func(t *testing.T) {
		status, _ := do(t, operator, http.MethodPost, base+"/"+sumOf("x")+"/accountd", "x")
		require.Equal(t, http.StatusMethodNotAllowed, status)
		mirror, _ := s.mirror(t, own)
		status, _ = do(t, http.DefaultClient, http.MethodPut, mirror+"/"+sumOf("x")+"/accountd", "x")
		require.Equal(t, http.StatusMethodNotAllowed, status)
	})
	t.Run("PathTraversal", func(t *testing.T) {
		mirror, _ := s.mirror(t, own)
		sum := sumOf("x")
		for _, path := range []string{
			"/", "/" + sum, "/" + sum + "/", "/" + sum + "/..", "/" + sum + "/%2e%2e%2fx", "/" + sum + "/a%2fb", "/" + sum + "/.hidden",
			"/" + sum + "/a%00b", "/" + strings.ToUpper(sum) + "/x", "/" + sum[:63] + "/x", "/" + sum[:63] + "g/x",
			"/..%2f..%2f..%2f..%2fetc/passwd", "/" + sum + "/" + strings.Repeat("a", 101), "/" + strings.Repeat("%2e%2e%2f", 21) + "x/passwd",
		} {
			status, _ := do(t, operator, http.MethodPut, base+path, "x")
			require.Equal(t, http.StatusBadRequest, status, path)
			status, _ = do(t, http.DefaultClient, http.MethodGet, mirror+path, "")
			require.Equal(t, http.StatusBadRequest, status, path)
		}
		_, err := uploader.Upload(t.Context(), "/etc/passwd", "../../etc")
		require.ErrorContains(t, err, "no SHA-256")
		nothing(t)
	})
}

// An upload that breaks off leaves nothing, and neither does a server that ended
// in the middle of one.
func TestBrokenOff(t *testing.T) {
	s := newSite(t)
	own := s.server(t)
	client := s.as(t, keys.OperatorName)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	body, feed := io.Pipe()
	defer body.Close()
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, "https://"+own.address+"/"+sumOf("x")+"/accountd", body)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		response, err := client.Do(request)
		if err == nil {
			response.Body.Close()
			if response.StatusCode >= http.StatusBadRequest { // it was faster than the caller who leaves
				err = errors.New(response.Status)
			}
		}
		done <- err
	}()
	_, err = feed.Write([]byte("half of it"))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return len(left(t, own.dir)) == 1 }, 5*time.Second, 5*time.Millisecond, "the upload has not begun")
	cancel()
	require.NoError(t, feed.CloseWithError(context.Canceled))
	require.Error(t, <-done)
	require.Eventually(t, func() bool { return len(left(t, own.dir)) == 0 }, 5*time.Second, 5*time.Millisecond, "half an artifact is left")

	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, ".partial-1"), []byte("half"), 0o600))
	_, err = artifacts.NewServer(dir, limit, keys.OperatorName, s.log)
	require.NoError(t, err)
	require.Empty(t, left(t, dir))
}

func TestMirrorFallsOver(t *testing.T) {
	s := newSite(t)
	path, sum := program(t, "a program")

	t.Run("FromServersThatAreDown", func(t *testing.T) {
		down, lacks, has := s.server(t), s.server(t), s.server(t)
		down.http.Close()
		_, err := s.uploader(t, has).Upload(t.Context(), path, sum)
		require.NoError(t, err)
		// Which server is first is chance: a mirror that does not try on fails in
		// some of these.
		for range 8 {
			mirror, _ := s.mirror(t, down, lacks, has)
			status, text := do(t, http.DefaultClient, http.MethodGet, mirror+"/"+sum+"/accountd", "")
			require.Equal(t, http.StatusOK, status, text)
			require.Equal(t, "a program", text)
		}
	})
	t.Run("FromAServerThatLies", func(t *testing.T) {
		lies, honest := s.server(t), s.server(t)
		require.NoError(t, os.MkdirAll(filepath.Join(lies.dir, sum), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(lies.dir, sum, "accountd"), []byte("something else"), 0o600))
		mirror, dir := s.mirror(t, lies)
		status, text := do(t, http.DefaultClient, http.MethodGet, mirror+"/"+sum+"/accountd", "")
		require.Equal(t, http.StatusBadGateway, status)
		require.Contains(t, text, artifacts.ErrMismatch.Error())
		require.Empty(t, left(t, dir))
		_, err := s.uploader(t, honest).Upload(t.Context(), path, sum)
		require.NoError(t, err)
		for range 4 {
			mirror, _ = s.mirror(t, lies, honest)
			status, text = do(t, http.DefaultClient, http.MethodGet, mirror+"/"+sum+"/accountd", "")
			require.Equal(t, http.StatusOK, status, text)
			require.Equal(t, "a program", text)
		}
	})
	t.Run("FromAServerOfAnotherCluster", func(t *testing.T) {
		other := newSite(t)
		foreign := other.server(t)
		_, err := other.uploader(t, foreign).Upload(t.Context(), path, sum)
		require.NoError(t, err)
		mirror, dir := s.mirror(t, foreign)
		status, text := do(t, http.DefaultClient, http.MethodGet, mirror+"/"+sum+"/accountd", "")
		require.Equal(t, http.StatusBadGateway, status)
		require.Contains(t, text, "certificate")
		require.Empty(t, left(t, dir))
	})
	t.Run("AClientPassesForNoServer", func(t *testing.T) {
		handler, err := artifacts.NewServer(t.TempDir(), limit, keys.OperatorName, s.log)
		require.NoError(t, err)
		impostor := httptest.NewUnstartedServer(handler)
		impostor.TLS = &tls.Config{Certificates: []tls.Certificate{s.node(t, "client-1")}}
		impostor.Config.ErrorLog = slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)
		impostor.StartTLS()
		defer impostor.Close()
		mirror, _ := s.mirrorOf(t, []string{impostor.Listener.Addr().String()})
		status, text := do(t, http.DefaultClient, http.MethodGet, mirror+"/"+sum+"/accountd", "")
		require.Equal(t, http.StatusBadGateway, status)
		require.Contains(t, text, keys.ConsulServerName)
	})
	t.Run("NobodyHasIt", func(t *testing.T) {
		mirror, _ := s.mirror(t, s.server(t), s.server(t))
		status, _ := do(t, http.DefaultClient, http.MethodGet, mirror+"/"+sumOf("nothing")+"/accountd", "")
		require.Equal(t, http.StatusNotFound, status)
	})
	t.Run("PerhapsAServerThatIsDownHasIt", func(t *testing.T) {
		down := s.server(t)
		down.http.Close()
		mirror, _ := s.mirror(t, s.server(t), down)
		status, text := do(t, http.DefaultClient, http.MethodGet, mirror+"/"+sumOf("nothing")+"/accountd", "")
		require.Equal(t, http.StatusBadGateway, status, "Nomad tries again")
		require.Contains(t, text, down.address)
	})
	t.Run("NoServers", func(t *testing.T) {
		_, err := artifacts.NewMirror(t.TempDir(), limit, nil, nil, s.log)
		require.ErrorContains(t, err, "needs the addresses of servers")
	})
}

// A server's folder does not grow for ever: what no job names any more goes, and
// what somebody has only just uploaded, or found to be there, stays.
func TestPrune(t *testing.T) {
	s := newSite(t)
	one, two := s.server(t), s.server(t)
	uploader := s.uploader(t, one, two)
	upload := func(text string) (url, sum string) {
		path, sum := program(t, text)
		url, err := uploader.Upload(t.Context(), path, sum)
		require.NoError(t, err)
		return url, sum
	}
	age := func(sum string) {
		for _, server := range []*server{one, two} {
			old := time.Now().Add(-2 * time.Hour)
			require.NoError(t, os.Chtimes(filepath.Join(server.dir, sum, "accountd"), old, old))
		}
	}
	needed, neededSum := upload("what a job names")
	_, newSum := upload("what a job will name in a minute")
	_, againSum := upload("what was deployed once and is deployed again")
	_, oldSum := upload("what a job named")
	for _, sum := range []string{neededSum, againSum, oldSum} {
		age(sum)
	}
	upload("what was deployed once and is deployed again")

	require.NoError(t, uploader.Prune(t.Context(), []string{needed, "/usr/bin/true"}))
	want := []string{neededSum + "/accountd", newSum + "/accountd", againSum + "/accountd"}
	require.ElementsMatch(t, want, left(t, one.dir))
	require.ElementsMatch(t, want, left(t, two.dir))
	require.NoDirExists(t, filepath.Join(one.dir, oldSum))

	t.Run("AMachineMayNot", func(t *testing.T) {
		config, err := keys.TLS(s.keys.CA, s.node(t, "client-1"), keys.ConsulServerName)
		require.NoError(t, err)
		age(againSum)
		err = artifacts.NewUploader(addresses([]*server{one}), config, nil).Prune(t.Context(), []string{needed})
		require.ErrorContains(t, err, `this is that of "client-1"`)
		require.ElementsMatch(t, want, left(t, one.dir))
	})
	t.Run("AServerIsDown", func(t *testing.T) {
		age(newSum)
		one.http.Close()
		err := uploader.Prune(t.Context(), []string{needed})
		require.ErrorContains(t, err, one.address)
		require.NotContains(t, err.Error(), two.address)
		require.Equal(t, []string{neededSum + "/accountd"}, left(t, two.dir))
		require.ElementsMatch(t, want, left(t, one.dir))
	})
}

// A mirror's folder does not grow for ever; what is still asked for stays.
func TestMirrorForgets(t *testing.T) {
	s := newSite(t)
	own := s.server(t)
	mirror, dir := s.mirror(t, own)
	uploader := s.uploader(t, own)
	var sums []string
	get := func(sum string) {
		t.Helper()
		status, _ := do(t, http.DefaultClient, http.MethodGet, mirror+"/"+sum+"/accountd", "")
		require.Equal(t, http.StatusOK, status)
	}
	for i := range 12 {
		path, sum := program(t, strings.Repeat(string(rune('a'+i)), limit))
		_, err := uploader.Upload(t.Context(), path, sum)
		require.NoError(t, err)
		sums = append(sums, sum)
		get(sum)
		get(sums[0])
	}
	have := left(t, dir)
	require.Len(t, have, 8)
	require.Contains(t, have, sums[0]+"/accountd", "the one that was asked for all the time")
	require.Contains(t, have, sums[11]+"/accountd")
	require.NotContains(t, have, sums[1]+"/accountd")
	get(sums[1])
	require.Len(t, left(t, dir), 8)
}

// Many tasks that start at once make the mirror fetch once.
func TestMirrorFetchesOnce(t *testing.T) {
	s := newSite(t)
	own := s.server(t)
	path, sum := program(t, strings.Repeat("a program", 1000))
	_, err := s.uploader(t, own).Upload(t.Context(), path, sum)
	require.NoError(t, err)
	before := own.asked.Load()
	// The server answers when all have asked.
	var waiting sync.WaitGroup
	const tasks = 16
	gate := make(chan struct{})
	proxy, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() {
		conn, err := proxy.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		<-gate
		to, err := net.Dial("tcp", own.address)
		if err != nil {
			return
		}
		defer to.Close()
		go func() { _, _ = io.Copy(to, conn) }()
		_, _ = io.Copy(conn, to)
	}()
	t.Cleanup(func() { proxy.Close() })
	mirror, dir := s.mirrorOf(t, []string{proxy.Addr().String()})
	arrived := make(chan struct{}, tasks)
	for range tasks {
		waiting.Go(func() {
			arrived <- struct{}{}
			status, _ := do(t, http.DefaultClient, http.MethodGet, mirror+"/"+sum+"/accountd", "")
			require.Equal(t, http.StatusOK, status)
		})
	}
	for range tasks {
		<-arrived
	}
	close(gate)
	waiting.Wait()
	require.Equal(t, before+1, own.asked.Load())
	require.Equal(t, []string{sum + "/accountd"}, left(t, dir))
}
