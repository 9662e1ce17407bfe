package blobs

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"
	"gocloud.dev/blob/s3blob"
)

// answerTime is how long a server that speaks S3 may take to begin an answer.
const answerTime = 30 * time.Second

// Open opens the store that a URL names:
//
//	file:///var/lib/media
//	s3://bucket?endpoint=https://s3.example.com&region=eu-1&prefix=media/&credentials=/run/secrets/s3
//
// A folder is made when it is absent; several processes may share it. Of S3 only
// the bucket has to be named. endpoint is a server other than Amazon's, whose
// buckets are then paths and not host names; region is us-east-1 unless given;
// prefix goes before all keys; credentials is a file in the form of
// ~/.aws/credentials, and without it the environment has them, as for any program
// that uses AWS. Of uploads to S3 that a killed process left, the bucket's own rule
// (AbortIncompleteMultipartUpload) clears what Sweep cannot see.
//
// Open does not ask whether the store is there: see Check.
func Open(ctx context.Context, address string, limits Limits) (*Store, error) {
	l, err := parseURL(address)
	if err != nil {
		return nil, err
	}
	if l.folder != "" {
		return openFolder(l.folder, limits)
	}
	return openS3(ctx, l, limits)
}

func openFolder(folder string, limits Limits) (*Store, error) {
	bucket, err := fileblob.OpenBucket(folder, &fileblob.Options{
		CreateDir: true, DirFileMode: 0o750,
		// Next to where they belong: a rename does not cross file systems.
		NoTempDir: true,
		// What there is to know of a blob is in its contents.
		Metadata: fileblob.MetadataDontWrite,
	})
	if err != nil {
		return nil, fmt.Errorf("open the media folder %s: %w", folder, err)
	}
	s := newStore(bucket, limits)
	s.folder = folder
	return s, nil
}

func openS3(ctx context.Context, l location, limits Limits) (*Store, error) {
	options := []func(*config.LoadOptions) error{
		config.WithRegion(l.region),
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
			t.ResponseHeaderTimeout = answerTime
		})),
	}
	if l.credentials != "" {
		if _, err := os.Stat(l.credentials); err != nil {
			return nil, fmt.Errorf("the credentials of the media store: %w", err)
		}
		options = append(options, config.WithSharedCredentialsFiles([]string{l.credentials}))
	}
	if l.endpoint != "" {
		// No cloud to ask for credentials, and no wait until it does not answer.
		options = append(options, config.WithEC2IMDSClientEnableState(imds.ClientDisabled))
	}
	settings, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("configure the media store: %w", err)
	}
	client := s3.NewFromConfig(settings, func(o *s3.Options) {
		if l.endpoint == "" {
			return
		}
		o.BaseEndpoint, o.UsePathStyle = aws.String(l.endpoint), true
		// Checksums in trailers are news to many servers.
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	})
	bucket, err := s3blob.OpenBucket(ctx, client, l.bucket, nil)
	if err != nil {
		return nil, fmt.Errorf("open the bucket %s: %w", l.bucket, err)
	}
	if l.prefix != "" {
		bucket = blob.PrefixedBucket(bucket, l.prefix)
	}
	return newStore(bucket, limits), nil
}

// location is a store's URL, taken apart.
type location struct {
	folder                                        string
	bucket, endpoint, region, prefix, credentials string
}

func parseURL(address string) (location, error) {
	u, err := url.Parse(address)
	if err != nil {
		return location{}, fmt.Errorf("the media store's URL: %w", err)
	}
	wrong := func(format string, args ...any) (location, error) {
		return location{}, fmt.Errorf("the media store %s: %s", u.Redacted(), fmt.Sprintf(format, args...))
	}
	if u.User != nil {
		return wrong("a URL is no place for secrets: name a file, ?credentials=/path")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return wrong("%v", err)
	}
	take := func(name string) string {
		value := query.Get(name)
		query.Del(name)
		return value
	}
	var l location
	switch u.Scheme {
	case "file":
		if u.Host != "" && u.Host != "localhost" {
			return wrong("a folder has three slashes: file:///folder")
		}
		if l.folder = filepath.Clean(u.Path); u.Path == "" || l.folder == "/" {
			return wrong("name a folder: file:///folder")
		}
	case "s3":
		l = location{
			bucket: u.Host, endpoint: take("endpoint"), region: take("region"),
			prefix: take("prefix"), credentials: take("credentials"),
		}
		if l.bucket == "" || strings.Trim(u.Path, "/") != "" {
			return wrong("name a bucket and nothing after it: s3://bucket")
		}
		if l.region == "" {
			l.region = "us-east-1"
		}
		if l.prefix != "" && !strings.HasSuffix(l.prefix, "/") {
			return wrong("a prefix ends with a slash")
		}
		if e, err := url.Parse(l.endpoint); l.endpoint != "" && (err != nil || e.Host == "" || e.Scheme != "http" && e.Scheme != "https" || e.User != nil) {
			return wrong("endpoint must be the URL of a server, http or https")
		}
	default:
		return wrong("want file:///folder or s3://bucket")
	}
	if len(query) > 0 {
		var names []string
		for name := range query {
			names = append(names, name)
		}
		slices.Sort(names)
		return wrong("there is no parameter %s", strings.Join(names, ", "))
	}
	return l, nil
}
