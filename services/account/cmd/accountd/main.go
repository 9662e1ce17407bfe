// Command accountd is the account service: accounts, sessions, organisations and
// the keys that access tokens are signed with.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/platform/service"
	"github.com/marquee-ads/marquee/platform/throttle"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	"github.com/marquee-ads/marquee/services/account"
	"github.com/marquee-ads/marquee/services/account/postgres"
	"github.com/marquee-ads/marquee/services/account/server"
)

type config struct {
	service.Config

	Database database.Flags `embed:"" prefix:"database-"`

	KeyEncryptionKeyFile string        `type:"path" help:"File with 32 random bytes as base64 or hex (openssl rand -base64 32), the same for all instances: it encrypts the signing keys in the database. Needed."`
	KeySignFor           time.Duration `default:"24h" help:"How long a signing key signs before the next one takes over."`
	KeyPublishAhead      time.Duration `default:"10m" help:"How long the next signing key is published before it signs, so that every service knows it in time."`

	PasswordMemory      uint32 `default:"19456" help:"Memory of one password hash (argon2id) in KiB; OWASP's least with 2 passes is 19456. Existing hashes are brought up to date at log-in."`
	PasswordPasses      uint32 `default:"2" help:"Passes of one password hash over its memory."`
	PasswordThreads     uint8  `default:"1" help:"Threads of one password hash."`
	PasswordConcurrency int    `help:"Password hashes at once. More make log-ins faster and everything else slower under a flood of them. Default: half the cores, as far as half the memory is enough (NOMAD_MEMORY_LIMIT MiB, else 256), at least 1."`
	PasswordQueue       int    `help:"Log-ins and sign-ups that may wait for their turn to hash; more are turned away at once, and fewer when they would wait for long. Default: 32 for each hash at once."`

	LogInNameBurst    int           `default:"10" help:"Wrong passwords that are let through at once for one name by strangers, and apart from them by each known address and device."`
	LogInNameEvery    time.Duration `default:"30s" help:"After which time one more of them is let through."`
	LogInAddressBurst int           `default:"50" help:"Wrong passwords that are let through at once from one address, for all names together."`
	LogInAddressEvery time.Duration `default:"2s" help:"After which time one more of them is let through."`
}

// Validate checks what only this service has.
func (c *config) Validate() error {
	problems := []error{c.Database.Check(&c.Config)}
	wrong := func(flag, format string, args ...any) {
		problems = append(problems, fmt.Errorf("--%s: %s", flag, fmt.Sprintf(format, args...)))
	}
	if c.KeyEncryptionKeyFile == "" {
		wrong("key-encryption-key-file", "is needed; make one with: openssl rand -base64 32")
	}
	if err := c.schedule().Validate(); err != nil {
		wrong(settingFlag(err), "%s", err)
	}
	if err := c.hashParams().Validate(); err != nil {
		wrong(settingFlag(err), "%s", err)
	}
	if c.PasswordConcurrency < 0 || c.PasswordQueue < 0 {
		wrong("password-concurrency", "it and --password-queue cannot be negative; leave them out for the defaults")
	}
	if err := c.throttle().Validate(); err != nil {
		wrong(settingFlag(err), "%s", err)
	}
	memory := memoryLimit()
	most := int(max(1, memory<<10/2/max(1, int64(c.PasswordMemory))))
	if c.Mode == service.Production && c.PasswordConcurrency > most {
		wrong("password-concurrency", "%d hashes of %d KiB (--password-memory) take more than half of the %d MiB that this process has (NOMAD_MEMORY_LIMIT); use at most %d, or a smaller --password-memory", c.PasswordConcurrency, c.PasswordMemory, memory, most)
	}
	if c.PasswordConcurrency == 0 {
		c.PasswordConcurrency = min(most, max(1, runtime.GOMAXPROCS(0)/2))
	}
	if c.PasswordQueue == 0 {
		c.PasswordQueue = 32 * c.PasswordConcurrency
	}
	return errors.Join(problems...)
}

// settingFlag is the flag of the setting that a *account.SettingError is about.
func settingFlag(err error) string {
	wrong := &account.SettingError{}
	errors.As(err, &wrong)
	switch wrong.Field {
	case "SignFor":
		return "key-sign-for"
	case "PublishAhead":
		return "key-publish-ahead"
	case "Time":
		return "password-passes"
	case "Threads":
		return "password-threads"
	case "Name.Burst":
		return "log-in-name-burst"
	case "Name.Every":
		return "log-in-name-every"
	case "Address.Burst":
		return "log-in-address-burst"
	case "Address.Every":
		return "log-in-address-every"
	default:
		return "password-memory"
	}
}

// memoryLimit is what this process may use, in MiB: what Nomad says, or what
// package service takes without it.
func memoryLimit() int64 {
	memory, err := strconv.ParseInt(os.Getenv("NOMAD_MEMORY_LIMIT"), 10, 32)
	if err != nil || memory <= 0 {
		return 256
	}
	return memory
}

func (c *config) schedule() account.Schedule {
	return account.Schedule{SignFor: c.KeySignFor, PublishAhead: c.KeyPublishAhead}
}

func (c *config) hashParams() account.HashParams {
	return account.HashParams{MemoryKiB: c.PasswordMemory, Time: c.PasswordPasses, Threads: c.PasswordThreads}
}

func (c *config) throttle() account.Throttle {
	limits := account.DefaultThrottle()
	limits.Name = throttle.Budget{Burst: c.LogInNameBurst, Every: c.LogInNameEvery}
	limits.Address = throttle.Budget{Burst: c.LogInAddressBurst, Every: c.LogInAddressEvery}
	return limits
}

func main() { service.Main("account", run) }

// run is the service from its first to its last moment; tests call it with port 0.
func run(ctx context.Context, cfg config) error {
	secretText, err := cfg.Secret("key-encryption-key-file", cfg.KeyEncryptionKeyFile)
	if err != nil {
		return err
	}
	secret, err := account.ParseSecret(secretText)
	if err != nil {
		return fmt.Errorf("--key-encryption-key-file: %s: %w", cfg.KeyEncryptionKeyFile, err)
	}
	hasher, err := account.NewHasher(cfg.hashParams(), cfg.PasswordConcurrency, cfg.PasswordQueue, rand.Reader)
	if err != nil {
		return err
	}

	svc, err := service.New(ctx, cfg.Config)
	if err != nil {
		return err
	}
	defer svc.Close()

	db, err := cfg.Database.Open(ctx, &cfg.Config, svc)
	if err != nil {
		return err
	}
	defer db.Close()
	store := postgres.New(db)

	keys, err := account.NewKeyring(store, secret, cfg.schedule(), cfg.Environment, time.Now, rand.Reader)
	if err != nil {
		return err
	}
	// Back from an outage, an instance would refuse tokens until they are fresh.
	svc.Require("signing keys", func(context.Context) error { return keys.Available() })
	accounts := account.New(store, hasher, keys, secret, cfg.throttle(), time.Now, rand.Reader, svc.Log())

	svc.Add(service.Component{Name: "the database", Start: func(ctx context.Context) error {
		return store.Prepare(ctx, keys.Refresh)
	}})
	svc.AddBackground("refreshing the signing keys", func(ctx context.Context) error { return keys.Run(ctx, svc.Log()) })
	svc.AddBackground("sweeping", accounts.RunSweep)
	grpcServer := svc.NewGRPCServer(service.GRPCOptions{Keys: keys})
	api := server.New(accounts)
	accountv1.RegisterAccountServiceServer(grpcServer, api)
	accountv1.RegisterOrganisationServiceServer(grpcServer, api)
	return svc.Serve(ctx)
}
