package embedded

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
)

// sayings is the logger of the server: it passes on what is said, and remembers
// what is fatal, where nats-server's own ends the process.
type sayings struct {
	logger *slog.Logger // immutable

	mu    sync.Mutex
	first error // guarded by mu: the first that was fatal
}

func (s *sayings) fatal() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first
}

func (s *sayings) Fatalf(format string, v ...any) {
	text := strings.TrimSpace(fmt.Sprintf(format, v...))
	s.logger.Error("nats-server: " + text)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.first == nil {
		s.first = errors.New("nats-server: " + text)
	}
}

func (s *sayings) Errorf(format string, v ...any) { s.say(s.logger.Error, format, v) }
func (s *sayings) Warnf(format string, v ...any)  { s.say(s.logger.Warn, format, v) }

func (s *sayings) Noticef(format string, v ...any) { s.say(s.logger.Debug, format, v) }
func (s *sayings) Debugf(format string, v ...any)  { s.say(s.logger.Debug, format, v) }
func (s *sayings) Tracef(format string, v ...any)  { s.say(s.logger.Debug, format, v) }

func (s *sayings) say(log func(string, ...any), format string, v []any) {
	log("nats-server: " + strings.TrimSpace(fmt.Sprintf(format, v...)))
}
