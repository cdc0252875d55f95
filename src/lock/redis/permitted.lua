-- Before each of the scripts: Redis 7 has no error code for what a script is not permitted.
local function permitted(command, key)
    return not redis.acl_check_cmd or redis.acl_check_cmd(command, key)
end
local commands = 'type get set del exists pttl pexpire time lpush zadd zrem zrank zcard zrange zrangebyscore'
for command in string.gmatch(commands, '%a+') do
    if not permitted(command, KEYS[1]) then return redis.error_reply('NOPERM ' .. command .. ' ' .. KEYS[1]) end
end
for _, key in ipairs(KEYS) do
    if not permitted('del', key) then return redis.error_reply('NOPERM ' .. key) end
end

