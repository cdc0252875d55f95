-- Lets the lock that this token holds live for so long at least, and renews its second record: 1, or 0 where the lock
-- is not the token's. `how` it is renewed: 'in time'; 'late', as its time may have run out; 'unwanted', only where nobody
-- waits for it; or for the 'last' time, so that the second record ends.
local key, second, queue, seen, called, server = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local token, ttl, how = '"token":"' .. ARGV[1] .. '"', tonumber(ARGV[2]), ARGV[3]

local kind = redis.call('TYPE', key).ok
local value = kind == 'string' and redis.call('GET', key)
local last = redis.call('GET', second)
if last and not string.find(last, token, 1, true) then last = false end
if last and how == 'last' then redis.call('DEL', second) end
if how == 'unwanted' then
    drop_silent(queue, seen)
    if redis.call('EXISTS', queue, called) > 0 then return 0 end
end
-- Its time ran out while the holder was suspended, and nobody has come since: that one would have cleared our record.
if kind == 'none' and how == 'late' and last and not another_id(server) then
    value = string.match(last, '^%d+ (.*)$')
    redis.call('SET', key, value, 'PX', ttl)
end
if not (value and string.find(value, token, 1, true)) then return 0 end
local left = redis.call('PTTL', key)
if left ~= -1 and left < ttl then redis.call('PEXPIRE', key, ttl) end
if how ~= 'last' then renew_second(second, last, value) end
return 1
