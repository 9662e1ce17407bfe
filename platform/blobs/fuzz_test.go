package blobs

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whatever the headers of an upload say, they are understood as they are or refused.
func FuzzUploadHeaders(f *testing.F) {
	f.Add("sha256 eA==,filetype aW1hZ2UvcG5n", "sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0=", "100")
	f.Add("a,b ", "sha256 ", "0")
	f.Add(",", "sha1", "-1")
	f.Add(" ", " ", "9223372036854775808")
	f.Fuzz(func(t *testing.T, rawMetadata, rawChecksum, rawNumber string) {
		if metadata, err := parseMetadata(rawMetadata); err == nil && rawMetadata != "" {
			require.Len(t, metadata, strings.Count(rawMetadata, ",")+1)
			require.NotContains(t, metadata, "")
		}
		if checksum, err := parseChecksum(rawChecksum); err == nil && rawChecksum != "" {
			require.Len(t, checksum.Value, algorithms[checksum.Algorithm]().Size())
		}
		if n, err := number(http.Header{"Upload-Offset": {rawNumber}}, "Upload-Offset"); err == nil {
			require.Equal(t, strconv.FormatInt(n, 10), strings.TrimLeft(rawNumber[:len(rawNumber)-1], "0")+rawNumber[len(rawNumber)-1:])
		}
	})
}

// Whatever is asked for, the answer is a blob, the part of it that it says it is, or
// a refusal.
func FuzzGet(f *testing.F) {
	s := folderStore(f, Limits{})
	h, err := NewHandler(Options{Store: s, Authorize: bearer})
	require.NoError(f, err)
	content := png(1000, 60)
	_, err = s.Put(f.Context(), bytes.NewReader(content), Expect{})
	require.NoError(f, err)
	name := Sum(sha256.Sum256(content)).String()
	f.Add("/"+name, "bytes=0-9", "", "")
	f.Add("/"+name, "bytes=-5,1-2", `"`+name+`"`, `W/"x", *`)
	f.Add("/../"+name, "bytes=5-", "x", `"`)
	f.Add("/uploads/"+name, "", "", "")
	f.Fuzz(func(t *testing.T, path, ranges, ifRange, ifNoneMatch string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.URL = &url.URL{Path: path}
		r.Header = http.Header{"Range": {ranges}, "If-Range": {ifRange}, "If-None-Match": {ifNoneMatch}}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		switch w.Code {
		case http.StatusOK:
			require.Equal(t, name, strings.TrimPrefix(path, "/"))
			require.Equal(t, content, w.Body.Bytes())
		case http.StatusPartialContent:
			require.Equal(t, name, strings.TrimPrefix(path, "/"))
			said := w.Header().Get("Content-Range")
			if said == "" { // several
				require.True(t, strings.HasPrefix(w.Header().Get("Content-Type"), "multipart/byteranges"))
				return
			}
			var from, to, size int
			_, err := fmt.Sscanf(said, "bytes %d-%d/%d", &from, &to, &size)
			require.NoError(t, err)
			require.Equal(t, len(content), size)
			require.Equal(t, content[from:to+1], w.Body.Bytes())
		case http.StatusNotModified:
			require.Empty(t, w.Body.Bytes())
		case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusRequestedRangeNotSatisfiable:
			require.Contains(t, w.Body.String(), `"type":"urn:marquee:error:`)
		default:
			t.Fatalf("status %d for %q", w.Code, path)
		}
	})
}
