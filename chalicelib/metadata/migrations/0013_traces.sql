-- What a job was caused by, as others name it (W3C Trace Context: traceparent), so that its span
-- is part of the trace of the request or of the job that wrote it; '' where there is none. Whoever
-- writes a job need not say it, and triggers do not know it: it is a setting of the transaction.
ALTER TABLE jobs ADD COLUMN trace text NOT NULL DEFAULT '';
ALTER TABLE jobs ALTER COLUMN trace
    SET DEFAULT coalesce(current_setting('openregistry.trace', true), '');
