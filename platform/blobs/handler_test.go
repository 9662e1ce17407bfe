package blobs

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bdragon300/tusgo"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/fault"
)

// bearer is who uploads in tests: the token is the owner.
func bearer(r *http.Request) (string, error) {
	who, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case !ok:
		return "", fault.New(fault.Unauthenticated, "TOKEN_MISSING", "no token")
	case who == "viewer":
		return "", fault.New(fault.PermissionDenied, "ROLE_MISSING", "a viewer uploads nothing")
	case who == "broken":
		return "", errors.New("the password is hunter2")
	}
	return who, nil
}

// serve serves a store below /v1/media, as a service does.
func serve(t testing.TB, s *Store, change ...func(*Options)) *httptest.Server {
	t.Helper()
	opts := Options{Store: s, Authorize: bearer}
	for _, c := range change {
		c(&opts)
	}
	h, err := NewHandler(opts)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/v1/media/", http.StripPrefix("/v1/media", h))
	mux.HandleFunc("/other", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "other") })
	server := httptest.NewUnstartedServer(mux)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	return server
}

// request makes one; headers are pairs of a name and a value.
func request(t testing.TB, server *httptest.Server, method, path string, body io.Reader, headers ...string) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, body)
	require.NoError(t, err)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	response, err := server.Client().Do(r)
	require.NoError(t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response, content
}

// tus makes a request about uploads.
func tus(t testing.TB, server *httptest.Server, method, path string, body io.Reader, headers ...string) *http.Response {
	t.Helper()
	response, content := request(t, server, method, path, body,
		append([]string{"Tus-Resumable", "1.0.0", "Authorization", "Bearer " + owner, "Content-Type", chunkType}, headers...)...)
	require.Equal(t, "1.0.0", response.Header.Get("Tus-Resumable"))
	require.Equal(t, "no-store", response.Header.Get("Cache-Control"))
	if response.StatusCode >= 400 && method != http.MethodHead {
		problemOf(t, response, content)
	}
	return response
}

func problemOf(t testing.TB, response *http.Response, content []byte) (reason string) {
	t.Helper()
	require.Equal(t, "application/problem+json", response.Header.Get("Content-Type"), "%s", content)
	require.Equal(t, "no-store", response.Header.Get("Cache-Control"))
	var details struct {
		Type, Title, Reason, Instance string
		Status                        int
	}
	require.NoError(t, json.Unmarshal(content, &details), "%s", content)
	require.Equal(t, response.StatusCode, details.Status)
	require.Equal(t, "urn:marquee:error:"+details.Reason, details.Type)
	require.NotEmpty(t, details.Title)
	require.Equal(t, response.Request.URL.EscapedPath(), details.Instance)
	return details.Reason
}

func metadata(content []byte, pairs ...string) string {
	all := []string{"sha256 " + base64.StdEncoding.EncodeToString([]byte(Sum(sha256.Sum256(content)).String()))}
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, pairs[i]+" "+base64.StdEncoding.EncodeToString([]byte(pairs[i+1])))
	}
	return strings.Join(all, ",")
}

// create begins an upload and returns its path.
func create(t testing.TB, server *httptest.Server, content []byte) string {
	t.Helper()
	response := tus(t, server, http.MethodPost, "/v1/media/uploads", nil,
		"Upload-Length", strconv.Itoa(len(content)), "Upload-Metadata", metadata(content))
	require.Equal(t, http.StatusCreated, response.StatusCode)
	location, err := response.Location()
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(location.Path, "/v1/media/uploads/"), location.Path)
	return location.Path
}

// offset asks how far an upload is.
func offset(t testing.TB, server *httptest.Server, path string) int {
	t.Helper()
	response := tus(t, server, http.MethodHead, path, nil)
	require.Equal(t, http.StatusOK, response.StatusCode)
	n, err := strconv.Atoi(response.Header.Get("Upload-Offset"))
	require.NoError(t, err)
	return n
}

func patch(t testing.TB, server *httptest.Server, path string, at int, content []byte, headers ...string) *http.Response {
	t.Helper()
	return tus(t, server, http.MethodPatch, path, bytes.NewReader(content), append(headers, "Upload-Offset", strconv.Itoa(at))...)
}

func TestGet(t *testing.T) {
	onEach(t, func(t *testing.T, open func(Limits) *Store) {
		s := open(Limits{})
		server := serve(t, s)
		content := png(1_000_000, 40)
		sum := put(t, s, content).Sum
		path := "/v1/media/" + sum.String()
		etag := `"` + sum.String() + `"`

		for _, method := range []string{http.MethodGet, http.MethodHead} {
			response, got := request(t, server, method, path, nil)
			require.Equal(t, 2, response.ProtoMajor)
			require.Equal(t, http.StatusOK, response.StatusCode)
			want := map[string]string{
				"Etag": etag, "Cache-Control": "public, max-age=31536000, immutable",
				"Content-Type": "image/png", "Content-Length": "1000000", "Accept-Ranges": "bytes",
				"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox",
				"Content-Disposition": `inline; filename="` + sum.String()[:16] + `.png"`, "Last-Modified": "",
			}
			for name, value := range want {
				require.Equal(t, value, response.Header.Get(name), name)
			}
			if method == http.MethodGet {
				require.True(t, bytes.Equal(content, got))
			} else {
				require.Empty(t, got)
			}
		}

		for _, test := range []struct {
			name    string
			headers []string
			status  int
			want    []byte
		}{
			{"NoneMatch", []string{"If-None-Match", etag}, 304, nil},
			{"NoneMatchWeak", []string{"If-None-Match", `"x", W/` + etag}, 304, nil},
			{"NoneMatchAny", []string{"If-None-Match", "*"}, 304, nil},
			{"NoneMatchOther", []string{"If-None-Match", `"x"`}, 200, content},
			{"Match", []string{"If-Match", etag}, 200, content},
			{"MatchOther", []string{"If-Match", `"x"`}, 412, nil},
			{"Range", []string{"Range", "bytes=10-19"}, 206, content[10:20]},
			{"RangeOfOne", []string{"Range", "bytes=0-0"}, 206, content[:1]},
			{"Resume", []string{"Range", "bytes=900000-"}, 206, content[900_000:]},
			{"Suffix", []string{"Range", "bytes=-10"}, 206, content[999_990:]},
			{"RangePastTheEnd", []string{"Range", "bytes=999999-5000000"}, 206, content[999_999:]},
			{"BeyondTheEnd", []string{"Range", "bytes=1000000-"}, 416, nil},
			{"NoRange", []string{"Range", "bytes=b-a"}, 416, nil},
			{"OtherUnit", []string{"Range", "lines=1-2"}, 416, nil},
			{"IfRange", []string{"Range", "bytes=10-19", "If-Range", etag}, 206, content[10:20]},
			{"IfRangeOther", []string{"Range", "bytes=10-19", "If-Range", `"x"`}, 200, content},
			{"IfRangeWeak", []string{"Range", "bytes=10-19", "If-Range", "W/" + etag}, 200, content},
			{"IfRangeDate", []string{"Range", "bytes=10-19", "If-Range", "Sat, 21 Nov 2026 10:00:00 GMT"}, 200, content},
			{"TooManyRanges", []string{"Range", "bytes=" + strings.Repeat("0-0,", maxRanges) + "1-1"}, 200, content},
			{"MoreThanThereIs", []string{"Range", "bytes=0-,0-,0-"}, 200, content},
		} {
			t.Run(test.name, func(t *testing.T) {
				response, got := request(t, server, http.MethodGet, path, nil, test.headers...)
				require.Equal(t, test.status, response.StatusCode)
				switch test.status {
				case 412:
					require.Equal(t, "PRECONDITION_FAILED", problemOf(t, response, got))
				case 416:
					require.Equal(t, "RANGE_INVALID", problemOf(t, response, got))
					if test.name == "BeyondTheEnd" {
						require.Equal(t, "bytes */1000000", response.Header.Get("Content-Range"))
					}
					require.Empty(t, response.Header.Get("Etag"))
				default:
					require.Equal(t, etag, response.Header.Get("Etag"))
					require.True(t, bytes.Equal(test.want, got), "%d bytes instead of %d", len(got), len(test.want))
				}
			})
		}
		t.Run("SeveralRanges", func(t *testing.T) {
			response, got := request(t, server, http.MethodGet, path, nil, "Range", "bytes=0-9,500000-500009,-5")
			require.Equal(t, http.StatusPartialContent, response.StatusCode)
			kind, parameters, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
			require.NoError(t, err)
			require.Equal(t, "multipart/byteranges", kind)
			parts := multipart.NewReader(bytes.NewReader(got), parameters["boundary"])
			for _, want := range [][]byte{content[:10], content[500_000:500_010], content[999_995:]} {
				part, err := parts.NextPart()
				require.NoError(t, err)
				got, err := io.ReadAll(part)
				require.NoError(t, err)
				require.Equal(t, want, got)
				require.Equal(t, "image/png", part.Header.Get("Content-Type"))
			}
			_, err = parts.NextPart()
			require.ErrorIs(t, err, io.EOF)
		})
	})
}

func TestGetText(t *testing.T) {
	s := folderStore(t, Limits{})
	server := serve(t, s)
	sum := put(t, s, []byte("hello <script>alert(1)</script>")).Sum
	response, _ := request(t, server, http.MethodGet, "/v1/media/"+sum.String(), nil)
	require.Equal(t, "text/plain; charset=utf-8", response.Header.Get("Content-Type"))
	require.Equal(t, `attachment; filename="`+sum.String()[:16]+`.txt"`, response.Header.Get("Content-Disposition"))

	t.Run("WhatIsNoMedia", func(t *testing.T) {
		other := Sum{2}
		path := filepath.Join(s.folder, other.key())
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o750))
		require.NoError(t, os.WriteFile(path, []byte("<html><script>"), 0o600))
		response, _ := request(t, server, http.MethodGet, "/v1/media/"+other.String(), nil)
		require.Equal(t, "application/octet-stream", response.Header.Get("Content-Type"))
		require.Equal(t, "attachment", response.Header.Get("Content-Disposition"))
	})
}

func TestPaths(t *testing.T) {
	s := folderStore(t, Limits{})
	h, err := NewHandler(Options{Store: s, Authorize: bearer})
	require.NoError(t, err)
	sum := put(t, s, png(100, 41)).Sum
	name := sum.String()
	require.NoError(t, os.WriteFile(filepath.Join(s.folder, "secret"), []byte("hunter2"), 0o600))
	for path, want := range map[string]int{
		"/" + name:                             200,
		name:                                   200, // StripPrefix with a slash at the end
		"/":                                    404,
		"":                                     404,
		"/" + strings.ToUpper(name):            404,
		"/" + name + "/":                       404,
		"//" + name:                            404,
		"/" + name + ".png":                    404,
		"/../" + name:                          404,
		"/secret":                              404,
		"/../secret":                           404,
		"/..%2fsecret":                         404,
		"/blobs/" + name[:2] + "/" + name:      404,
		"/" + sum.key():                        404,
		"/" + name[:63] + "\x00":               404,
		"/" + strings.Repeat("0", 64):          404,
		"/" + strings.Repeat("../", 21) + "a":  404,
		"/" + strings.Repeat("a", 1<<16):       404,
		"/uploads":                             405,
		"/uploads/":                            405,
		"/uploads/../" + name:                  405,
		"/uploads/AAAAAAAAAAAAAAAAAAAAAAAAAA":  405,
		"/uploads/AAAAAAAAAAAAAAAAAAAAAAAAAA/": 405,
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.URL = &url.URL{Path: path}
		h.ServeHTTP(w, r)
		require.Equal(t, want, w.Code, "%q", path)
		require.NotContains(t, w.Body.String(), "hunter2")
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch, "BREW"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, "/"+name, nil))
		require.Equal(t, http.StatusMethodNotAllowed, w.Code, method)
		require.Equal(t, "GET, HEAD", w.Header().Get("Allow"))
	}
	for _, id := range []string{"AAAAAAAAAAAAAAAAAAAAAAAAAA", "..", "../../secret", "x", "\x00"} {
		for _, method := range []string{http.MethodHead, http.MethodPatch, http.MethodDelete} {
			r := httptest.NewRequest(method, "/", strings.NewReader("x"))
			r.URL = &url.URL{Path: "/uploads/" + id}
			r.Header = http.Header{"Tus-Resumable": {"1.0.0"}, "Authorization": {"Bearer x"}, "Content-Type": {chunkType}, "Upload-Offset": {"0"}}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			require.Equal(t, http.StatusNotFound, w.Code, "%s %q", method, id)
			require.Empty(t, w.Header().Get("Upload-Offset"))
		}
	}
}

func TestNewHandler(t *testing.T) {
	_, err := NewHandler(Options{Authorize: bearer})
	require.ErrorContains(t, err, "Store")
	_, err = NewHandler(Options{Store: folderStore(t, Limits{})})
	require.ErrorContains(t, err, "Authorize")
}

// tus 1.0.0, sentence by sentence.
func TestTus(t *testing.T) {
	onEach(t, func(t *testing.T, open func(Limits) *Store) {
		server := serve(t, open(Limits{BlobSize: 1 << 20}))
		content := png(10_000, 42)

		response, _ := request(t, server, http.MethodOptions, "/v1/media/uploads", nil)
		require.Equal(t, http.StatusNoContent, response.StatusCode)
		for name, value := range map[string]string{
			"Tus-Resumable": "1.0.0", "Tus-Version": "1.0.0", "Tus-Extension": "creation,checksum,termination",
			"Tus-Checksum-Algorithm": "sha1,sha256", "Tus-Max-Size": "1048576",
		} {
			require.Equal(t, value, response.Header.Get(name), name)
		}

		path := create(t, server, content)
		response = tus(t, server, http.MethodHead, path, nil)
		require.Equal(t, http.StatusOK, response.StatusCode)
		require.Equal(t, "0", response.Header.Get("Upload-Offset"))
		require.Equal(t, "10000", response.Header.Get("Upload-Length"))
		require.Equal(t, metadata(content), response.Header.Get("Upload-Metadata"))

		for _, test := range []struct {
			name    string
			method  string
			body    []byte
			headers []string
			status  int
		}{
			{"NoVersion", http.MethodHead, nil, []string{"Tus-Resumable", ""}, 412},
			{"OtherVersion", http.MethodPatch, content, []string{"Tus-Resumable", "0.2.2", "Upload-Offset", "0"}, 412},
			{"OtherContentType", http.MethodPatch, content, []string{"Content-Type", "image/png", "Upload-Offset", "0"}, 415},
			{"NoOffset", http.MethodPatch, content, nil, 400},
			{"NegativeOffset", http.MethodPatch, content, []string{"Upload-Offset", "-1"}, 400},
			{"HugeOffset", http.MethodPatch, content, []string{"Upload-Offset", "9223372036854775808"}, 400},
			{"OtherOffset", http.MethodPatch, content, []string{"Upload-Offset", "1"}, 409},
			{"TooLong", http.MethodPatch, append(content, 'x'), []string{"Upload-Offset", "0"}, 413},
			{"OtherChecksum", http.MethodPatch, content[:100], []string{"Upload-Offset", "0", "Upload-Checksum", "sha1 " + base64.StdEncoding.EncodeToString(make([]byte, 20))}, 460},
			{"OtherAlgorithm", http.MethodPatch, content[:100], []string{"Upload-Offset", "0", "Upload-Checksum", "md5 AAAA"}, 400},
			{"ShortChecksum", http.MethodPatch, content[:100], []string{"Upload-Offset", "0", "Upload-Checksum", "sha1 AAAA"}, 400},
			{"NoBase64", http.MethodPatch, content[:100], []string{"Upload-Offset", "0", "Upload-Checksum", "sha1 !"}, 400},
			{"OtherOwner", http.MethodHead, nil, []string{"Authorization", "Bearer org_2"}, 404},
			{"OtherOwnersChunk", http.MethodPatch, content, []string{"Authorization", "Bearer org_2", "Upload-Offset", "0"}, 404},
			{"OtherOwnersEnd", http.MethodDelete, nil, []string{"Authorization", "Bearer org_2"}, 404},
			{"NobodyHead", http.MethodHead, nil, []string{"Authorization", ""}, 401},
			{"Nobody", http.MethodPatch, content, []string{"Authorization", "", "Upload-Offset", "0"}, 401},
			{"Viewer", http.MethodPatch, content, []string{"Authorization", "Bearer viewer", "Upload-Offset", "0"}, 403},
			{"Broken", http.MethodDelete, nil, []string{"Authorization", "Bearer broken"}, 500},
			{"Method", http.MethodPut, nil, nil, 405},
			{"Post", http.MethodPost, nil, nil, 405},
		} {
			t.Run(test.name, func(t *testing.T) {
				response := tus(t, server, test.method, path, bytes.NewReader(test.body), test.headers...)
				require.Equal(t, test.status, response.StatusCode)
				require.Empty(t, response.Header.Get("Upload-Offset"))
				if test.status == 412 {
					require.Equal(t, "1.0.0", response.Header.Get("Tus-Version"))
				}
				require.Zero(t, offset(t, server, path), "and nothing is kept")
			})
		}

		sum := sha1.Sum(content[:4000])
		response = patch(t, server, path, 0, content[:4000], "Upload-Checksum", "sha1 "+base64.StdEncoding.EncodeToString(sum[:]))
		require.Equal(t, http.StatusNoContent, response.StatusCode)
		require.Equal(t, "4000", response.Header.Get("Upload-Offset"))
		require.Equal(t, 4000, offset(t, server, path))
		response = tus(t, server, http.MethodPost, path, bytes.NewReader(content[4000:]), "X-HTTP-Method-Override", "PATCH", "Upload-Offset", "4000")
		require.Equal(t, http.StatusNoContent, response.StatusCode)
		require.Equal(t, "10000", response.Header.Get("Upload-Offset"))
		require.Equal(t, 10_000, offset(t, server, path))
		require.Equal(t, http.StatusNoContent, patch(t, server, path, 10_000, nil).StatusCode, "nothing more is no error")
		response, got := request(t, server, http.MethodGet, "/v1/media/"+Sum(sha256.Sum256(content)).String(), nil)
		require.Equal(t, http.StatusOK, response.StatusCode)
		require.Equal(t, content, got)

		require.Equal(t, http.StatusNoContent, tus(t, server, http.MethodDelete, path, nil).StatusCode)
		require.Equal(t, http.StatusNotFound, tus(t, server, http.MethodHead, path, nil).StatusCode)
		ended := create(t, server, content)
		require.Equal(t, http.StatusNoContent, tus(t, server, http.MethodDelete, ended, nil).StatusCode)
		require.Equal(t, http.StatusNotFound, patch(t, server, ended, 0, content).StatusCode)
	})
}

func TestTusBegin(t *testing.T) {
	s := folderStore(t, Limits{BlobSize: 1 << 20, OwnerUploads: 1})
	server := serve(t, s)
	content := png(1000, 43)
	good := metadata(content)
	for _, test := range []struct {
		name    string
		headers []string
		status  int
		reason  string
	}{
		{"NoLength", []string{"Upload-Metadata", good}, 400, "HEADER_INVALID"},
		{"Empty", []string{"Upload-Length", "0", "Upload-Metadata", good}, 400, "BLOB_EMPTY"},
		{"NoNumber", []string{"Upload-Length", "+1", "Upload-Metadata", good}, 400, "HEADER_INVALID"},
		{"TooLarge", []string{"Upload-Length", "1048577", "Upload-Metadata", good}, 413, "BLOB_TOO_LARGE"},
		{"LengthLater", []string{"Upload-Defer-Length", "1", "Upload-Metadata", good}, 400, "HEADER_INVALID"},
		{"Concatenation", []string{"Upload-Length", "1000", "Upload-Concat", "partial", "Upload-Metadata", good}, 400, "HEADER_INVALID"},
		{"NoMetadata", []string{"Upload-Length", "1000"}, 400, "HEADER_INVALID"},
		{"NoSum", []string{"Upload-Length", "1000", "Upload-Metadata", "filename eA=="}, 400, "HEADER_INVALID"},
		{"OtherSum", []string{"Upload-Length", "1000", "Upload-Metadata", "sha256 eA=="}, 400, "HEADER_INVALID"},
		{"NoBase64", []string{"Upload-Length", "1000", "Upload-Metadata", good + ",x !"}, 400, "HEADER_INVALID"},
		{"Twice", []string{"Upload-Length", "1000", "Upload-Metadata", good + "," + good}, 400, "HEADER_INVALID"},
		{"MediaType", []string{"Upload-Length", "1000", "Upload-Metadata", metadata(content, "filetype", "text/html")}, 415, "MEDIA_TYPE_UNSUPPORTED"},
		{"LongMetadata", []string{"Upload-Length", "1000", "Upload-Metadata", metadata(content, "x", strings.Repeat("x", 4096))}, 400, "METADATA_TOO_LARGE"},
		{"NoToken", []string{"Authorization", "", "Upload-Length", "1000", "Upload-Metadata", good}, 401, "TOKEN_MISSING"},
		{"NoVersion", []string{"Tus-Resumable", "", "Upload-Length", "1000", "Upload-Metadata", good}, 412, "TUS_VERSION_UNSUPPORTED"},
	} {
		t.Run(test.name, func(t *testing.T) {
			response, got := request(t, server, http.MethodPost, "/v1/media/uploads", nil,
				append([]string{"Tus-Resumable", "1.0.0", "Authorization", "Bearer " + owner}, test.headers...)...)
			require.Equal(t, test.status, response.StatusCode)
			require.Equal(t, test.reason, problemOf(t, response, got))
			require.Empty(t, keys(t, s))
		})
	}
	first := create(t, server, content)
	response := tus(t, server, http.MethodPost, "/v1/media/uploads/", nil, "Upload-Length", "1000", "Upload-Metadata", good)
	require.Equal(t, http.StatusTooManyRequests, response.StatusCode)
	require.Equal(t, http.StatusNoContent, tus(t, server, http.MethodDelete, first, nil).StatusCode)
	response = tus(t, server, http.MethodPost, "/v1/media/uploads/", nil, "Upload-Length", "1000", "Upload-Metadata", good)
	require.Equal(t, http.StatusCreated, response.StatusCode)
	location, err := response.Location()
	require.NoError(t, err)
	require.Zero(t, offset(t, server, location.Path), "the address with a slash leads there, too")
}

func TestTusUploadsThatCannotComeRight(t *testing.T) {
	s := folderStore(t, Limits{})
	server := serve(t, s)
	content := png(1000, 44)
	for _, test := range []struct {
		name     string
		metadata string
		content  []byte
		status   int
	}{
		{"AnotherSum", metadata(png(1000, 45)), content, 422},
		{"AnotherMediaType", metadata(content, "filetype", "image/jpeg"), content, 422},
		{"APage", metadata(content), []byte("<html>" + strings.Repeat(" ", 994)), 415},
	} {
		t.Run(test.name, func(t *testing.T) {
			response := tus(t, server, http.MethodPost, "/v1/media/uploads", nil, "Upload-Length", "1000", "Upload-Metadata", test.metadata)
			require.Equal(t, http.StatusCreated, response.StatusCode)
			location, err := response.Location()
			require.NoError(t, err)
			require.Equal(t, test.status, patch(t, server, location.Path, 0, test.content).StatusCode)
			require.Equal(t, http.StatusNotFound, tus(t, server, http.MethodHead, location.Path, nil).StatusCode)
			require.Empty(t, keys(t, s))
		})
	}
}

// A client that was not made for this server uploads to it.
func TestTusClient(t *testing.T) {
	onEach(t, func(t *testing.T, open func(Limits) *Store) {
		s := open(Limits{})
		server := serve(t, s)
		content := png(3_000_000, 46)
		sum := Sum(sha256.Sum256(content))
		address, err := url.Parse(server.URL + "/v1/media/uploads")
		require.NoError(t, err)
		client := tusgo.NewClient(server.Client(), address)
		client.GetRequest = func(method, url string, body io.Reader, _ *tusgo.Client, _ *http.Client) (*http.Request, error) {
			r, err := http.NewRequestWithContext(t.Context(), method, url, body)
			if err == nil {
				r.Header.Set("Authorization", "Bearer "+owner)
			}
			return r, err
		}
		_, err = client.UpdateCapabilities()
		require.NoError(t, err)
		require.Equal(t, []string{"creation", "checksum", "termination"}, client.Capabilities.Extensions)

		upload := func(send func(stream *tusgo.UploadStream)) {
			var u tusgo.Upload
			_, err := client.CreateUpload(&u, int64(len(content)), false, map[string]string{"sha256": sum.String(), "filetype": "image/png"})
			require.NoError(t, err)
			stream := tusgo.NewUploadStream(client, &u)
			send(stream)
			var now tusgo.Upload
			_, err = client.GetUpload(&now, u.Location)
			require.NoError(t, err)
			require.Equal(t, int64(len(content)), now.RemoteOffset)
			require.True(t, bytes.Equal(content, get(t, s, sum)))
			require.NoError(t, s.Delete(t.Context(), sum))
			_, err = client.DeleteUpload(u)
			require.NoError(t, err)
			require.Empty(t, keys(t, s))
		}
		t.Run("InOne", func(t *testing.T) {
			upload(func(stream *tusgo.UploadStream) {
				stream.ChunkSize = tusgo.NoChunked
				n, err := stream.ReadFrom(bytes.NewReader(content))
				require.NoError(t, err)
				require.Equal(t, int64(len(content)), n)
			})
		})
		t.Run("InChunksWithChecksums", func(t *testing.T) {
			upload(func(stream *tusgo.UploadStream) {
				stream = stream.WithChecksumAlgorithm("sha1")
				stream.ChunkSize = 700_000
				_, err := stream.ReadFrom(bytes.NewReader(content))
				require.NoError(t, err)
			})
		})
		t.Run("Interrupted", func(t *testing.T) {
			upload(func(stream *tusgo.UploadStream) {
				stream.ChunkSize = tusgo.NoChunked
				_, err := stream.ReadFrom(io.MultiReader(bytes.NewReader(content[:1_234_567]), failing{}))
				require.Error(t, err)
				// The server has seen the end of the connection when it has kept what came,
				// and has left the upload to others a moment later.
				require.Eventually(t, func() bool {
					if _, err := stream.Sync(); err != nil || stream.Tell() == 0 {
						return false
					}
					_, err := stream.ReadFrom(bytes.NewReader(content[stream.Tell():]))
					return err == nil
				}, 10*time.Second, 10*time.Millisecond)
			})
		})
	})
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the wire broke") }

// raw speaks HTTP/1.1 on a connection of its own.
func raw(t testing.TB, server *httptest.Server, head string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	_, err = io.WriteString(conn, head)
	require.NoError(t, err)
	return conn
}

// plain serves without TLS and HTTP/2.
func plain(t testing.TB, s *Store, change func(*Options)) *httptest.Server {
	t.Helper()
	server := serve(t, s, change)
	p := httptest.NewServer(server.Config.Handler)
	t.Cleanup(p.Close)
	return p
}

// goOn sends a chunk behind one that broke off, whose request may be there for a
// moment yet, and returns the status.
func goOn(t testing.TB, server *httptest.Server, path string, offset int, chunk []byte) (status int) {
	t.Helper()
	require.Eventually(t, func() bool {
		status = patch(t, server, path, offset, chunk).StatusCode
		return status != http.StatusLocked
	}, 10*time.Second, 10*time.Millisecond)
	return status
}

func TestUploadThatBreaksOff(t *testing.T) {
	server := plain(t, folderStore(t, Limits{}), func(*Options) {})
	content := png(50_000, 47)
	path := create(t, server, content)
	conn := raw(t, server, "PATCH "+path+" HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nAuthorization: Bearer "+owner+
		"\r\nContent-Type: "+chunkType+"\r\nUpload-Offset: 0\r\nContent-Length: 50000\r\n\r\n")
	_, err := conn.Write(content[:20_000])
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.Eventually(t, func() bool { return offset(t, server, path) == 20_000 }, 10*time.Second, 10*time.Millisecond, "what came is kept")
	require.Equal(t, http.StatusNoContent, goOn(t, server, path, 20_000, content[20_000:]))
}

func TestSlowUpload(t *testing.T) {
	t.Run("HTTP2", func(t *testing.T) {
		server := serve(t, folderStore(t, Limits{}), func(o *Options) { o.ChunkTime = 100 * time.Millisecond })
		content := png(50_000, 48)
		path := create(t, server, content)
		read, write := io.Pipe()
		defer write.Close()
		go func() { _, _ = write.Write(content[:20_000]) }()
		response := tus(t, server, http.MethodPatch, path, read, "Upload-Offset", "0")
		require.Equal(t, 2, response.ProtoMajor)
		require.Equal(t, http.StatusRequestTimeout, response.StatusCode)
		require.Equal(t, 20_000, offset(t, server, path), "what came is kept")
	})
	server := plain(t, folderStore(t, Limits{}), func(o *Options) { o.ChunkTime = 100 * time.Millisecond })
	content := png(50_000, 48)
	path := create(t, server, content)
	conn := raw(t, server, "PATCH "+path+" HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nAuthorization: Bearer "+owner+
		"\r\nContent-Type: "+chunkType+"\r\nUpload-Offset: 0\r\nContent-Length: 50000\r\n\r\n")
	_, err := conn.Write(content[:20_000])
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusRequestTimeout, response.StatusCode)
	require.True(t, response.Close)
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Contains(t, string(body), `"reason":"BODY_TOO_SLOW"`)
	require.Equal(t, 20_000, offset(t, server, path), "what came is kept")
	require.Equal(t, http.StatusNoContent, goOn(t, server, path, 20_000, content[20_000:]))
}

// A body that is refused and does not come either does not hold up the refusal.
func TestRefusedBodyThatDoesNotCome(t *testing.T) {
	server := plain(t, folderStore(t, Limits{}), func(o *Options) { o.ReadTime = 100 * time.Millisecond })
	for _, head := range []string{"POST /v1/media/uploads", "PATCH /v1/media/uploads/AAAAAAAAAAAAAAAAAAAAAAAAAA", "GET /v1/media/x"} {
		conn := raw(t, server, head+" HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nContent-Length: 1000\r\n\r\n")
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err, head)
		response.Body.Close()
		require.Contains(t, []int{http.StatusUnauthorized, http.StatusNotFound}, response.StatusCode)
	}
}

// Whoever does not read is cut off; others are not disturbed.
func TestSlowReader(t *testing.T) {
	onEach(t, func(t *testing.T, open func(Limits) *Store) {
		s := open(Limits{})
		served := make(chan any, 1)
		h, err := NewHandler(Options{Store: s, Authorize: bearer, ReadTime: 2 * time.Second})
		require.NoError(t, err)
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				what := recover()
				served <- what
				if what != nil {
					panic(what)
				}
			}()
			h.ServeHTTP(w, r)
		}))
		defer server.Close()
		content := png(32<<20, 49) // more than sockets hold
		sum := put(t, s, content).Sum
		conn := raw(t, server, "GET /"+sum.String()+" HTTP/1.1\r\nHost: x\r\n\r\n")
		select {
		case what := <-served:
			require.Equal(t, http.ErrAbortHandler, what)
		case <-time.After(20 * time.Second):
			t.Fatal("a reader that does not read was not left")
		}
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		defer response.Body.Close()
		n, err := io.Copy(io.Discard, response.Body)
		require.Error(t, err, "half a blob does not look like a whole one")
		require.Less(t, n, int64(len(content)))

		response, got := request(t, server, http.MethodGet, "/"+sum.String(), nil)
		require.Nil(t, <-served)
		require.Equal(t, http.StatusOK, response.StatusCode)
		require.True(t, bytes.Equal(content, got))
	})
}

// Time is given by the stretch, so that what is large may take long.
func TestTimeByTheStretch(t *testing.T) {
	t.Run("Upload", func(t *testing.T) {
		set := 0
		body := &timedBody{body: bytes.NewReader(make([]byte, 3*PartSize)), time: time.Minute, set: func(at time.Time) error {
			set++
			require.WithinDuration(t, time.Now().Add(time.Minute), at, 30*time.Second)
			return nil
		}}
		_, err := io.Copy(io.Discard, body)
		require.NoError(t, err)
		require.Equal(t, 4, set, "once for each part, and for the end")
	})
	t.Run("Answer", func(t *testing.T) {
		s := folderStore(t, Limits{})
		h, err := NewHandler(Options{Store: s, Authorize: bearer})
		require.NoError(t, err)
		content := png(10*stretch, 55)
		w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/"+put(t, s, content).Sum.String(), nil))
		require.True(t, bytes.Equal(content, w.Body.Bytes()))
		require.GreaterOrEqual(t, w.set, 10)
	})
}

// deadlines counts how often the time to write is set.
type deadlines struct {
	*httptest.ResponseRecorder
	set int
}

func (d *deadlines) SetWriteDeadline(time.Time) error {
	d.set++
	return nil
}

// The deadlines of one request are not those of the next on its connection.
func TestDeadlinesEnd(t *testing.T) {
	s := folderStore(t, Limits{})
	server := plain(t, s, func(o *Options) { o.ReadTime, o.ChunkTime = 50*time.Millisecond, 50*time.Millisecond })
	content := png(1000, 50)
	path := create(t, server, content)
	require.Equal(t, http.StatusNoContent, patch(t, server, path, 0, content).StatusCode)
	response, _ := request(t, server, http.MethodGet, "/v1/media/"+Sum(sha256.Sum256(content)).String(), nil)
	require.Equal(t, http.StatusOK, response.StatusCode)
	conn := raw(t, server, "")
	in := bufio.NewReader(conn)
	for _, what := range []string{"/v1/media/" + Sum(sha256.Sum256(content)).String(), "/other"} {
		_, err := io.WriteString(conn, "GET "+what+" HTTP/1.1\r\nHost: x\r\n\r\n")
		require.NoError(t, err)
		response, err := http.ReadResponse(in, nil)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, response.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, response.StatusCode)
		<-time.After(100 * time.Millisecond) // longer than the deadlines: this is what is tested
	}
}

func TestManyReaders(t *testing.T) {
	onEach(t, func(t *testing.T, open func(Limits) *Store) {
		s := open(Limits{})
		server := serve(t, s)
		content := png(2_000_000, 51)
		sum := put(t, s, content).Sum
		var all sync.WaitGroup
		for i := range 50 {
			all.Go(func() {
				from := i * 39_000
				r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/v1/media/"+sum.String(), nil)
				if err != nil {
					t.Error(err)
					return
				}
				r.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
				response, err := server.Client().Do(r)
				if err != nil {
					t.Error(err)
					return
				}
				defer response.Body.Close()
				got, err := io.ReadAll(response.Body)
				if err != nil || response.StatusCode != http.StatusPartialContent || !bytes.Equal(content[from:], got) {
					t.Errorf("reader %d: status %d, %d bytes, %v", i, response.StatusCode, len(got), err)
				}
			})
		}
		// And it is put again meanwhile.
		all.Go(func() {
			if _, err := s.Put(t.Context(), bytes.NewReader(content), Expect{}); err != nil {
				t.Error(err)
			}
		})
		all.Wait()
	})
}

// A blob that is written over, by a process that did not see it, reads as one.
func TestReadWhilePut(t *testing.T) {
	s := folderStore(t, Limits{})
	server := serve(t, s)
	content := png(8<<20, 52)
	sum := put(t, s, content).Sum
	response, err := server.Client().Get(server.URL + "/v1/media/" + sum.String())
	require.NoError(t, err)
	defer response.Body.Close()
	head := make([]byte, 1000)
	_, err = io.ReadFull(response.Body, head)
	require.NoError(t, err)
	_, err = s.write(t.Context(), sum.key(), object{mediaType: "image/png", limit: 8 << 20}, bytes.NewReader(content))
	require.NoError(t, err)
	require.NoError(t, s.Delete(t.Context(), sum))
	rest, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.True(t, bytes.Equal(content, append(head, rest...)))
}

// cutting ends the connection when it has passed on so many bytes of an answer.
type cutting struct {
	http.ResponseWriter
	left int
}

func (c *cutting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p[:min(len(p), c.left)])
	if c.left -= n; c.left == 0 && err == nil {
		err = http.NewResponseController(c.ResponseWriter).Flush()
		if err == nil {
			panic(http.ErrAbortHandler)
		}
	}
	return n, err
}

// A player that loses its connection over and over, behind a proxy, has the blob in
// the end and fetched no byte twice.
func TestPlayerResumes(t *testing.T) {
	s := folderStore(t, Limits{})
	h, err := NewHandler(Options{Store: s, Authorize: bearer})
	require.NoError(t, err)
	service := httptest.NewServer(http.StripPrefix("/v1/media", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(&cutting{w, 300_000}, r)
	})))
	defer service.Close()
	target, err := url.Parse(service.URL)
	require.NoError(t, err)
	gateway := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:  func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ErrorLog: log.New(io.Discard, "", 0),
	})
	defer gateway.Close()
	content := png(1_000_000, 56)
	path := create(t, gateway, content)
	require.Equal(t, http.StatusNoContent, patch(t, gateway, path, 0, content).StatusCode)

	name := Sum(sha256.Sum256(content)).String()
	var file bytes.Buffer
	tries := 0
	for ; file.Len() < len(content) && tries < 10; tries++ {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, gateway.URL+"/v1/media/"+name, nil)
		require.NoError(t, err)
		if file.Len() > 0 {
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-", file.Len()))
			r.Header.Set("If-Range", `"`+name+`"`)
		}
		response, err := gateway.Client().Do(r)
		require.NoError(t, err)
		if file.Len() > 0 {
			require.Equal(t, http.StatusPartialContent, response.StatusCode)
		}
		_, _ = io.Copy(&file, response.Body) // what came is kept
		response.Body.Close()
	}
	require.Equal(t, 4, tries)
	require.True(t, bytes.Equal(content, file.Bytes()))
}

// TestMain lets the test binary be a server that can be killed.
func TestMain(m *testing.M) {
	if folder := os.Getenv("BLOBS_SERVE"); folder != "" {
		fmt.Fprintln(os.Stderr, serveForever(folder))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func serveForever(folder string) error {
	s, err := Open(context.Background(), "file://"+folder, Limits{})
	if err != nil {
		return err
	}
	h, err := NewHandler(Options{Store: s, Authorize: bearer})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	return http.Serve(listener, http.StripPrefix("/v1/media", h))
}

// process is a server of its own; kill ends it as kill -9 does.
func process(t *testing.T, folder string) (server *httptest.Server, kill func()) {
	t.Helper()
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), "BLOBS_SERVE="+folder)
	command.Stderr = os.Stderr
	out, err := command.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, command.Start())
	var once sync.Once
	kill = func() {
		once.Do(func() {
			_ = command.Process.Kill()
			_ = command.Wait()
		})
	}
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	server = httptest.NewUnstartedServer(nil) // only its client and address are used
	server.Listener.Close()
	server.Start()
	t.Cleanup(server.Close)
	server.URL = "http://" + strings.TrimSpace(line)
	return server, kill
}

// A process is killed amid an upload, and another goes on with it: what was kept is
// kept, and the blob is right.
func TestKilledAmidAnUpload(t *testing.T) {
	folder := t.TempDir()
	content := png(3*PartSize+500_000, 53)
	first, kill := process(t, folder)
	path := create(t, first, content)
	read, write := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, first.URL+path, read)
		if err != nil {
			t.Error(err)
			return
		}
		for _, pair := range [][2]string{{"Tus-Resumable", "1.0.0"}, {"Authorization", "Bearer " + owner}, {"Content-Type", chunkType}, {"Upload-Offset", "0"}} {
			r.Header.Set(pair[0], pair[1])
		}
		if response, err := http.DefaultClient.Do(r); err == nil {
			response.Body.Close()
			t.Error("the process answered: it was not killed amid the upload")
		}
		_ = read.Close()
	}()
	_, err := write.Write(content[:2*PartSize+1_000_000])
	require.NoError(t, err)
	require.Eventually(t, func() bool { return offset(t, first, path) >= 2*PartSize }, 20*time.Second, 20*time.Millisecond)
	kill()
	require.NoError(t, write.CloseWithError(io.ErrClosedPipe)) // there is no more to send
	<-done

	second, _ := process(t, folder)
	at := offset(t, second, path)
	require.Equal(t, 2*PartSize, at, "no more than a part is lost")
	require.Equal(t, http.StatusNoContent, patch(t, second, path, at, content[at:]).StatusCode)
	_, got := request(t, second, http.MethodGet, "/v1/media/"+Sum(sha256.Sum256(content)).String(), nil)
	require.True(t, bytes.Equal(content, got))
	s := opener(t, "file://"+folder)(Limits{})
	_, err = s.Sweep(t.Context(), time.Now().Add(time.Hour))
	require.NoError(t, err)
	require.Equal(t, []string{Sum(sha256.Sum256(content)).key()}, keys(t, s))
}

// A process that died between the last byte and the blob leaves an upload that the
// next question finishes.
func TestFinishedByTheNextQuestion(t *testing.T) {
	s := folderStore(t, Limits{})
	server := serve(t, s)
	content := png(1000, 54)
	path := create(t, server, content)
	id := path[strings.LastIndex(path, "/")+1:]
	_, err := s.Append(t.Context(), owner, id, Chunk{Length: -1, Body: bytes.NewReader(content)})
	require.NoError(t, err)
	require.Equal(t, 1000, offset(t, server, path))
	require.Equal(t, content, get(t, s, sha256.Sum256(content)))
}
