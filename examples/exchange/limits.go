package main

import (
	"math"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/qaexchange/notification/examples/exchange/page"
	"golang.org/x/time/rate"
)

// A limiter lets everybody do something so often: burst times at once, and then once
// in a while.
type limiter struct {
	// immutable
	every time.Duration
	burst int

	mu      sync.Mutex
	buckets map[string]*rate.Limiter // guarded by mu
	sweepAt int                      // guarded by mu: with so many it is time to forget
}

func newLimiter(every time.Duration, burst int) *limiter {
	return &limiter{every: every, burst: burst, buckets: make(map[string]*rate.Limiter), sweepAt: leastSweep}
}

// take counts one of key's, or returns after how long there is another.
func (l *limiter) take(key string, now time.Time) (wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buckets[key]
	if b == nil {
		if len(l.buckets) >= l.sweepAt {
			l.sweep(now)
		}
		b = rate.NewLimiter(rate.Every(l.every), l.burst)
		l.buckets[key] = b
	}
	r := b.ReserveN(now, 1)
	if wait = r.DelayFrom(now); wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

// sweep forgets those who have done nothing for so long that it no longer matters. mu
// is held.
func (l *limiter) sweep(now time.Time) {
	for key, b := range l.buckets {
		if b.TokensAt(now) >= float64(l.burst) {
			delete(l.buckets, key)
		}
	}
	l.sweepAt = max(leastSweep, 2*len(l.buckets))
}

// allows counts one of key's, or answers with 429.
func (l *limiter) allows(w http.ResponseWriter, key string) bool {
	wait := l.take(key, time.Now())
	if wait == 0 {
		return true
	}
	seconds := int(math.Ceil(wait.Seconds()))
	w.Header().Set("Retry-After", strconv.Itoa(seconds))
	page.Reply(w, http.StatusTooManyRequests, map[string]any{"error": "too often: again in " + strconv.Itoa(seconds) + " s", "retryAfter": seconds})
	return false
}

// address returns where a request comes from, as far as one can be held to it: of
// IPv6 everybody has a whole network. What a proxy says is believed if there is one,
// and of that the last, which it has added itself.
func (s *server) address(r *http.Request) string {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	if s.behindTLS {
		if all := strings.Join(r.Header.Values("X-Forwarded-For"), ","); all != "" {
			host = strings.TrimSpace(all[strings.LastIndexByte(all, ',')+1:])
		}
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		port, err := netip.ParseAddrPort(host) // as some proxies have it
		if err != nil {
			return host
		}
		ip = port.Addr()
	}
	if ip = ip.Unmap(); ip.Is6() {
		if network, err := ip.Prefix(64); err == nil {
			return network.String()
		}
	}
	return ip.String()
}

// A bounded listener has so many connections at most. Who comes then is hung up on, so
// that a proxy can try another server: to leave him waiting would look like one that
// is dead.
type bounded struct {
	net.Listener
	room chan struct{} // holds one for each connection
}

func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case b.room <- struct{}{}:
			return &placed{c.(*net.TCPConn), sync.OnceFunc(func() { <-b.room })}, nil
		default:
			_ = c.Close()
		}
	}
}

// A placed connection gives its place back.
type placed struct {
	*net.TCPConn
	leave func()
}

func (p *placed) Close() error {
	defer p.leave()
	return p.TCPConn.Close()
}
