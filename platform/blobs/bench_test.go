package blobs

import (
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkGet reads a blob of 64 MiB from a folder, in turns with http.FileServer
// that serves the same file, and gives the ratio of their speeds: 1 is as fast. Over
// plain connections the kernel sends both.
func BenchmarkGet(b *testing.B) {
	for name, start := range map[string]func(*httptest.Server){"Plain": (*httptest.Server).Start, "TLS": (*httptest.Server).StartTLS} {
		b.Run(name, func(b *testing.B) {
			const size = 64 << 20
			s := folderStore(b, Limits{})
			sum := put(b, s, png(size, 70)).Sum
			h, err := NewHandler(Options{Store: s, Authorize: bearer})
			require.NoError(b, err)
			mux := http.NewServeMux()
			mux.Handle("/media/", http.StripPrefix("/media", h))
			mux.Handle("/files/", http.StripPrefix("/files", http.FileServer(http.Dir(filepath.Dir(filepath.Join(s.folder, sum.key()))))))
			server := httptest.NewUnstartedServer(mux)
			start(server)
			defer server.Close()
			fetch := func(path string) time.Duration {
				began := time.Now()
				response, err := server.Client().Get(server.URL + path + sum.String())
				require.NoError(b, err)
				defer response.Body.Close()
				n, err := io.Copy(io.Discard, response.Body)
				require.NoError(b, err)
				require.Equal(b, int64(size), n)
				return time.Since(began)
			}
			fetch("/media/")
			fetch("/files/")
			var media, files time.Duration
			for b.Loop() {
				media += fetch("/media/")
				files += fetch("/files/")
			}
			megabytes := float64(b.N) * size / 1e6
			b.ReportMetric(megabytes/media.Seconds(), "MB/s")
			b.ReportMetric(megabytes/files.Seconds(), "fileserver-MB/s")
			b.ReportMetric(files.Seconds()/media.Seconds(), "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}
