-- {type, value, pttl} of the lock, and its second record.
local kind = redis.call('TYPE', KEYS[1]).ok
return {kind, kind == 'string' and redis.call('GET', KEYS[1]) or '', redis.call('PTTL', KEYS[1]),
    redis.call('GET', KEYS[2]) or ''}
